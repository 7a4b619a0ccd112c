"""Flower's deployment engine on this machine: a SuperLink and SuperNodes as processes on loopback."""
