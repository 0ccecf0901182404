"""The folder that `everram fs exec` puts on PYTHONPATH: nothing may lie here but `sitecustomize`."""
