"""Token stores and one epoch's sample -> the dataset card: card.html, README.md, card.json."""
