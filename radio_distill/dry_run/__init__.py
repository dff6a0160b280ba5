"""A recipe → what running it would take and whether it would run, without weights, data or memory."""
