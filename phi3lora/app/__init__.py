"""What a person can do, written once for every door: page, terminal and whatever comes."""
