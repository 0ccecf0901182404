"""Directory, leases, elections and fencing, through the etcd v3 API.

`api` says what a host may ask; `client` asks it of any etcd v3 server; `store` is the embedded server's state machine
(plain, synchronous), `sqlite` makes it durable, `embedded` drives both, `wire` translates and `server` serves. On
several machines the address of a real etcd takes the embedded server's place.
"""
