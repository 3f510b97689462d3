"""Faults injected into real sweeps: is anything lost or doubled?"""
