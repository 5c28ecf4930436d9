"""What a training reads: from a card to batches."""
