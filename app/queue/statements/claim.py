"""Claims results for the slots of servers that are free."""

from app.queue.columns import ASKED, CLAIMED
from app.queue.statements.parts import LOST_LEASE, OLD_CLAIM
from app.tasks.generate import LOGPROB_BYTES, TEXT_BYTES

# Owners take turns: each gets its weight's share of the slots, counting what runs already ($6 to $8), and within an
# owner the order is by rank. `shares` says how many of each owner are due, so that no more rows are locked than are
# claimed; where another dispatcher was quicker, `seen` is more than what is returned, and it is worth asking again.
# No more is claimed than comes to $9 bytes, prompts and what their answers may come to; the first is, whatever it is.
# A claim need not wait for the disk: one that a crash of Postgres forgets leaves the result queued, and its token void.
# An expired lease is claimable again; the attempt it belonged to goes into the ledger in the same statement.
CLAIMABLE = """r.status = 'pending' AND r.available_at <= now()
          AND (r.attempt_token IS NULL OR r.attempt_token <> ALL ($5::uuid[]))"""
# As `largest_answer` of the parameters.
LARGEST_ANSWER = f"""(coalesce((r.parameters->>'n')::bigint, 1) * coalesce((r.parameters->>'max_tokens')::bigint, 0)
    * ({TEXT_BYTES} + coalesce((r.parameters->>'logprobs')::bigint + 1, 0) * {LOGPROB_BYTES}))"""
# A ticket may wish for servers: each wish of a model is a queue of its own, and has the slots of servers that fulfil it
# ($12 to $14: servers, their names and kinds). Of two tickets for one slot the one with the lower rank has it.
# A slot of a server is a row that is locked while it is taken, so two dispatchers never take the same one, and neither
# waits for the other; $10 is how many a model has there, null for any number. Those of runs that have ended ($11) are
# free for who ran them. See slots.py.
#
# Work whose rank lies in the future, as that of batches does, yields: it may have only the first $15 slots of a server,
# so that what is due finds one free. Due work takes the last ones first, and yielding work the others.
FREE_SLOT = """(x.until <= now() AND (x.token IS NULL OR x.token <> ALL ($5::uuid[])) OR x.token = ANY (%s::uuid[]))"""
OFFERED_SLOT = FREE_SLOT % "$11"
# Whether the server `v` fulfils a wish.
MEETS = """(wish = 'server:' || v.name
            OR wish LIKE 'kinds:%' AND v.kind = ANY (string_to_array(substr(wish, 7), ',')))"""
# What a ticket `p` takes, its prompt and what is stored beside it.
STORED_BYTES = "pg_column_size(r.parameters) + coalesce(pg_column_size(r.request), 0)"
PROMPT_BYTES = """p.stored_bytes + (
        SELECT coalesce(octet_length(c.content), 0) + coalesce(pg_column_size(c.messages), 0)
               + coalesce(pg_column_size(c.inputs), 0)
        FROM contexts c WHERE c.id = p.context_id
    )"""
# Begins what `started` says: (id, prompt_bytes, answer_bytes, server, slot).
START = f"""claimed AS (
    UPDATE results r SET
        attempt_count = r.attempt_count + 1,
        attempt_token = gen_random_uuid(),
        attempt_started_at = now(),
        started_at = coalesce(r.started_at, now()),
        available_at = now() + make_interval(secs => $3),
        dispatcher = $4,
        server = started.server
    FROM started
    -- Each by its key: the planner has no other way to an array of one, and a plan that is kept stays good.
    WHERE r.id = ANY (ARRAY[started.id])
    RETURNING
        {CLAIMED.of("r")}, r.rank, r.server, r.attempt_token, r.attempt_count, started.prompt_bytes,
        started.answer_bytes, started.slot,
        extract(epoch FROM r.expires_at - now())::float8 AS expires_in,
        r.cancel_requested_at IS NOT NULL AS cancel_requested,
        r.error_code, r.error_message,
        extract(epoch FROM now() - r.created_at)::float8 AS age, old.started_at IS NULL AS first_claim,
        {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
    FROM claimed WHERE lost_token IS NOT NULL
), occupied AS (
    UPDATE server_slots x SET token = c.attempt_token, until = now() + make_interval(secs => $3)
    FROM claimed c WHERE x.server = c.server AND x.model = c.model AND x.number = c.slot
)"""
CLAIM = f"""
WITH RECURSIVE unflushed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), offered AS (
    SELECT model, server, most, open, place,
           row_number() OVER (PARTITION BY model, server ORDER BY place) AS nth
    FROM unnest($1::text[], $2::text[], $10::int[], $15::int[]) WITH ORDINALITY AS s(model, server, most, open, place),
         unflushed
), free AS (
    SELECT l.model, l.server, count(*) AS n, count(*) FILTER (WHERE x.number < l.open) AS open
    FROM offered l JOIN server_slots x ON x.server = l.server AND x.model = l.model AND x.number < l.most
    WHERE l.nth = 1 AND {OFFERED_SLOT} GROUP BY l.model, l.server
), wishes (model, wish) AS (
    -- Those of the tickets that are pending; '' is none.
    SELECT DISTINCT model, '' FROM offered
    UNION ALL
    SELECT w.model, (
        SELECT r.wish FROM results r
        WHERE r.status = 'pending' AND r.model = w.model AND r.wish > w.wish
        ORDER BY r.wish, r.owner_id, r.rank, r.id LIMIT 1
    ) FROM wishes w WHERE w.wish IS NOT NULL
), met AS MATERIALIZED (
    -- Before the slots come into it: many wishes may be for servers that are not here.
    SELECT model, wish FROM wishes WHERE wish = '' OR EXISTS (
        SELECT FROM unnest($12::text[], $13::text[], $14::text[]) AS v(server, name, kind) WHERE {MEETS}
    )
), slots AS (
    SELECT o.model, w.wish, o.server, o.most, o.open, o.place,
           row_number() OVER (PARTITION BY o.model, w.wish ORDER BY o.place) AS number
    FROM offered o JOIN met w USING (model) LEFT JOIN free f USING (model, server)
    WHERE (o.most IS NULL OR o.nth <= f.n) AND (w.wish = '' OR EXISTS (
        SELECT FROM unnest($12::text[], $13::text[], $14::text[]) AS v(server, name, kind)
        WHERE v.server = o.server AND {MEETS}
    ))
), wanted AS (
    SELECT model, wish, count(*) AS n FROM slots GROUP BY model, wish
), waiting (model, wish, n, owner_id) AS (
    SELECT w.model, w.wish, w.n, (
        SELECT r.owner_id FROM results r
        WHERE r.status = 'pending' AND r.model = w.model AND r.wish = w.wish
        -- The order of the index results_claim, so that no other one is thought as good.
        ORDER BY r.owner_id, r.rank, r.id LIMIT 1
    ) FROM wanted w
    UNION ALL
    SELECT w.model, w.wish, w.n, (
        SELECT r.owner_id FROM results r
        WHERE r.status = 'pending' AND r.model = w.model AND r.wish = w.wish AND r.owner_id > w.owner_id
        ORDER BY r.owner_id, r.rank, r.id LIMIT 1
    ) FROM waiting w WHERE w.owner_id IS NOT NULL
), turns AS (
    SELECT w.model, w.wish, w.n, w.owner_id, coalesce(b.running, 0) AS running, coalesce(o.weight, 1) AS weight,
           count(*) OVER (PARTITION BY w.model, w.wish) AS owners
    FROM waiting w
    LEFT JOIN unnest($6::text[], $7::int[], $8::int[]) AS b(model, owner_id, running) USING (model, owner_id)
    LEFT JOIN owners o ON o.id = w.owner_id
    WHERE w.owner_id IS NOT NULL
), shares AS (
    SELECT model, wish, owner_id, n, NULL::bigint AS seen FROM turns WHERE owners = 1
    UNION ALL
    SELECT model, wish, owner_id, count(*), count(*) FROM (
        SELECT t.model, t.wish, t.owner_id, t.n, row_number() OVER (
            PARTITION BY t.model, t.wish ORDER BY (t.running + p.place)::float8 / t.weight, p.rank, t.owner_id
        ) AS number
        FROM turns t CROSS JOIN LATERAL (
            SELECT f.rank, row_number() OVER (ORDER BY f.rank, f.id) AS place FROM (
                SELECT r.rank, r.id FROM results r
                WHERE r.model = t.model AND r.wish = t.wish AND r.owner_id = t.owner_id AND {CLAIMABLE}
                ORDER BY r.rank, r.id
                LIMIT t.n
            ) f
        ) p
        WHERE t.owners > 1
    ) soonest WHERE number <= n GROUP BY model, wish, owner_id
), due AS MATERIALIZED (
    -- Known without reading them: the length of a text, and that of a document which is stored as it is (EXTERNAL).
    SELECT p.id, s.model, s.wish, p.rank, p.answer_bytes, {PROMPT_BYTES} AS prompt_bytes
    FROM shares s CROSS JOIN LATERAL (
        SELECT r.id, r.rank, r.context_id, {STORED_BYTES} AS stored_bytes, {LARGEST_ANSWER} AS answer_bytes
        FROM results r
        WHERE r.model = s.model AND r.wish = s.wish AND r.owner_id = s.owner_id AND {CLAIMABLE}
        ORDER BY r.rank, r.id
        LIMIT s.n
        FOR UPDATE SKIP LOCKED
    ) p
), picked AS MATERIALIZED (
    SELECT id, model, wish, rank, prompt_bytes, answer_bytes,
           row_number() OVER (PARTITION BY model, wish ORDER BY rank, id) AS number,
           row_number() OVER ranked = 1 OR sum(prompt_bytes + answer_bytes) OVER ranked <= $9 AS fits
    FROM due WINDOW ranked AS (ORDER BY rank, id)
), matched AS (
    -- A ticket with a wish and one without may have been given the same slot.
    SELECT p.id, p.prompt_bytes, p.answer_bytes, p.rank > now() AS yields, model, s.server, s.most, s.open, s.place,
           row_number() OVER (PARTITION BY s.place ORDER BY p.rank, p.id) AS turn
    FROM picked p JOIN slots s USING (model, wish, number) WHERE fits
), placed AS (
    SELECT m.*, row_number() OVER (PARTITION BY model, server, yields ORDER BY place) AS nth
    FROM matched m WHERE turn = 1
), admitted AS (
    SELECT p.* FROM placed p LEFT JOIN free f USING (model, server)
    WHERE p.most IS NULL OR NOT p.yields OR p.nth <= f.open
), taken AS MATERIALIZED (
    SELECT l.model, l.server, ARRAY(
        SELECT x.number FROM server_slots x
        WHERE x.server = l.server AND x.model = l.model AND x.number < l.most AND {OFFERED_SLOT}
        ORDER BY x.number DESC LIMIT l.due
        FOR UPDATE SKIP LOCKED
    ) AS last, ARRAY(
        SELECT x.number FROM server_slots x
        WHERE x.server = l.server AND x.model = l.model AND x.number < l.open AND {OFFERED_SLOT}
        ORDER BY x.number LIMIT l.yielding
        FOR UPDATE SKIP LOCKED
    ) AS first
    FROM (
        SELECT model, server, most, open, count(*) FILTER (WHERE NOT yields) AS due,
               count(*) FILTER (WHERE yields) AS yielding
        FROM admitted WHERE most IS NOT NULL GROUP BY model, server, most, open
    ) l
), numbered AS (
    SELECT p.id, p.prompt_bytes, p.answer_bytes, server, p.most, p.yields, t.last,
           CASE WHEN p.yields THEN t.first[p.nth] ELSE t.last[p.nth] END AS slot
    FROM admitted p LEFT JOIN taken t USING (model, server)
), started AS MATERIALIZED (
    -- Where another dispatcher was quicker, both kinds of work may have found the same one.
    SELECT id, prompt_bytes, answer_bytes, server, slot FROM numbered
    WHERE most IS NULL OR slot IS NOT NULL AND NOT (yields AND slot = ANY (last))
), {START}
SELECT q.*, {ASKED.of("c")}, (SELECT coalesce(sum(seen), 0) FROM shares)::int AS seen,
       (SELECT count(*) FROM picked WHERE NOT fits) AS left_out,
       (SELECT count(*) FROM admitted) AS admitted, (SELECT count(*) FROM placed) AS placed,
       (SELECT jsonb_object_agg(model, n) FROM wanted
        WHERE wish = '' AND model NOT IN (SELECT model FROM wishes WHERE wish > '')) AS granted
FROM (VALUES (1)) AS always(one)
LEFT JOIN (claimed q JOIN contexts c ON c.id = q.context_id) ON true
ORDER BY q.rank, q.id
"""

# As CLAIM, for the only ticket that is pending for the model $1 on the one server $2, if it is due and has no wish, so
# that there is nobody to take turns with; $5 as there, $6 are the model's slots, $7 the claims that have ended.
# `pending` counts to 2. Postgres takes longer to start CLAIM than to run it: this takes a quarter of its time.
CLAIM_ONLY = f"""
WITH unflushed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), first AS MATERIALIZED (
    SELECT r.id, r.wish FROM results r, unflushed WHERE r.status = 'pending' AND r.model = $1
    ORDER BY r.wish, r.owner_id, r.rank, r.id LIMIT 2
), due AS MATERIALIZED (
    SELECT r.id, r.context_id, {STORED_BYTES} AS stored_bytes, {LARGEST_ANSWER} AS answer_bytes
    FROM results r
    WHERE r.id = ANY ((SELECT array_agg(id) FROM first HAVING count(*) = 1 AND max(wish) = '')::uuid[])
      AND ({CLAIMABLE}) IS TRUE AND r.rank <= now()
    FOR UPDATE SKIP LOCKED
), taken AS MATERIALIZED (
    SELECT x.number FROM server_slots x
    WHERE x.server = $2 AND x.model = $1 AND x.number < $6 AND {FREE_SLOT % "$7"} AND EXISTS (SELECT FROM due)
    ORDER BY x.number DESC LIMIT 1
    FOR UPDATE SKIP LOCKED
), started AS MATERIALIZED (
    SELECT p.id, {PROMPT_BYTES} AS prompt_bytes, p.answer_bytes, $2::text AS server, t.number AS slot
    FROM due p, taken t
), {START}
SELECT q.*, {ASKED.of("c")}, (SELECT count(*) FROM first) AS pending
FROM (VALUES (1)) AS always(one)
LEFT JOIN (claimed q JOIN contexts c ON c.id = q.context_id) ON true
"""
