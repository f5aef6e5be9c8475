"""One loop nest over calibration windows, and what rides on it."""
