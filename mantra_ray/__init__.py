"""Ray-distributed experiments and sweeps for MANTRA and its Nexus memory."""

__version__ = "0.1.0"
