"""The client's pure core: what a client knows and decides, without clock, sockets or threads."""
