"""SpikingJelly's names."""
