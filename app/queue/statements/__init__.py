"""All SQL of the queue, a module for each statement. The results table is the queue; each statement is one round trip.

A claim is a row whose `attempt_token` is set and whose `available_at` is the end of its lease. Renew, settle and
release name the token, so a dispatcher that lost its lease changes no row.
"""
