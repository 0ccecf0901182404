"""The typed, asynchronous client from outside.

    async with await Cluster.connect() as cluster:
        guest = await cluster.run(GuestSpec(name="bank", argv=[b"/usr/bin/bank"]))
        host, guest = await cluster.find_guest("bank")
        async for chunk in host.hypervisor.logs(LogsRequest(guest="bank")): ...

Every actor of every host is reached by the typed refs generated from its contract. A host that is being restarted is
waited for; a request is sent a second time only if it is certain that the first never left, or if it may be repeated.
"""

from everram.runtime.client.cluster import Cluster as Cluster
from everram.runtime.client.cluster import Host as Host
