"""What training does to the model: probes, divergence, calibration."""
