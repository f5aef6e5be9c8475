"""Calibration and evaluation text: sources and the windows cut from them."""
