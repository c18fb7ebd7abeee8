"""What the shells of agent, controller and client share: the MQTT connection and the loop.

Pure cores never import this package: it owns sockets, a helper thread and the environment.
"""
