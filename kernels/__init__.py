"""Triton kernels and their launchers, one file an op. Installed as ``gencore.kernels``; needs only torch and triton."""
