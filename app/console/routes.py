"""The pages of the console, in the order in which their addresses are tried."""

from app.console import (
    batches,
    changed_ticket,
    chat_pages,
    compare,
    host_pages,
    instruction_pages,
    key_pages,
    login,
    model_pages,
    new_batch,
    overview,
    running_pages,
    server_pages,
    similar_pages,
    ticket,
    ticket_sets,
    tickets,
    usage_pages,
    webhook_pages,
)

PAGES = (
    *(overview, tickets, ticket_sets, ticket, changed_ticket, similar_pages, chat_pages, instruction_pages, compare),
    *(new_batch, batches, model_pages, server_pages, host_pages),
    *(key_pages, usage_pages, webhook_pages, running_pages),
    # Last, for it has what no other page of the console is.
    login,
)
