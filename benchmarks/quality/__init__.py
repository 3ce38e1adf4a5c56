"""The acceptance benchmark of quality: published baselines, every order, calibration and map, and what `auto` makes."""
