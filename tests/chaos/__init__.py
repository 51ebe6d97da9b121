"""Kill, stall and cut everything at random, under load, and see whether anything that got a 2.04 is missing."""
