"""A hundred faults the sidecar must survive: the catalogue.

README.md names each with what the client, the kubelet and Prometheus must see. A test carries its fault's number:
`test_a11_…` injects fault 11 of group A. What is told in full elsewhere is told here in its essence.
"""
