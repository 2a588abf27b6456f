"""What a request, an event and a stream cost in our proxy and in others, measured side by side: `make bench`.

`workloads` says what is asked, `peers` who answers, `tools` builds and drives the load generator and the mock engine
(C, in this directory), `measure` starts proxies and runs rounds, `results` and `targets` judge, `report` prints.
"""
