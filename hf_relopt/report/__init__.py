"""Reports: reads the files of finished, running or killed runs and makes pages of them."""
