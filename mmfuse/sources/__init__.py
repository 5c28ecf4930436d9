"""Where scenes come from: files, folders, splits of a card, COCO JSON, videos, cameras and recordings."""
