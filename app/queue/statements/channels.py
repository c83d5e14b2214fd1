"""The channels of NOTIFY that the statements wake their readers by."""

# With the model that has new work, or nothing where any may have.
QUEUED_CHANNEL = "results_queued"
SETTLED_CHANNEL = "results_settled"
CANCEL_CHANNEL = "results_cancel"

# NOTIFY carries less than 8,000 bytes; an id and its comma are 37.
IDS_PER_NOTIFY = 200
