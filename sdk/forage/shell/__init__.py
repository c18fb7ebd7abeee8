"""The client's shell: its network thread, its callback thread, and the end of its process."""
