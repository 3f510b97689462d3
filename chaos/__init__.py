"""Faults injected into real sweeps, to test that nothing is lost or doubled."""
