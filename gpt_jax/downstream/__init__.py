"""What people do with a trained model; commands print and write what it returns."""
