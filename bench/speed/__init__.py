"""How fast forage is on this machine: `make bench`."""
