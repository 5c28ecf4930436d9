"""What a user runs: one public function in each file."""
