"""What happens around the loop: rows on disk, probes, diagnosis, early stopping, throughput."""
