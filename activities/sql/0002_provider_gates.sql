-- What all workers together know of a provider: whether a request to one of its models may leave now.
-- The rows belong to no tenant: they stand under the reserved tenant `*`, a name that no tenant can have.

-- What operators have said about a model, whichever key is used.
create table provider_limit (
    tenant text not null,
    provider text not null,
    model text not null,
    requests_per_minute integer check (requests_per_minute > 0),
    tokens_per_minute bigint check (tokens_per_minute > 0),
    forced_open boolean not null default false,
    changed_at timestamptz not null default now(),
    primary key (tenant, provider, model)
);

-- What was observed, per provider, model and key: the key's fingerprint, never the key.
-- The breaker is closed while `open_until` is null, else open, and half-open while a probe has its lease.
create table provider_gate (
    tenant text not null,
    provider text not null,
    model text not null,
    key text not null,
    failures integer not null default 0 check (failures >= 0),
    streak_since timestamptz,
    streak_from bigint not null default 0,
    openings integer not null default 0 check (openings >= 0),
    open_until timestamptz,
    probe text,
    probe_until timestamptz,
    paused_until timestamptz,
    recovering_since timestamptz,
    steady_per_second double precision not null default 0 check (steady_per_second >= 0),
    changes bigint not null default 0,  -- a decision is written only if the row is still the one it was made on
    -- When each bucket is empty again (GCRA): in the past, and it holds all it can hold.
    requests_due timestamptz not null default 'epoch',
    tokens_due timestamptz not null default 'epoch',
    pace_due timestamptz not null default 'epoch',
    -- Requests that left, each forgotten exponentially.
    load double precision not null default 0,
    load_at timestamptz not null default now(),
    sent bigint not null default 0,
    turned_away_at timestamptz,
    primary key (tenant, provider, model, key),
    check ((probe is null) = (probe_until is null)),
    check (probe is null or open_until is not null)
) with (fillfactor = 50);  -- every request updates its row: room for the new version beside the old one

do $$
declare
    table_name text;
begin
    foreach table_name in array array['provider_limit', 'provider_gate']
    loop
        execute format('alter table %I enable row level security', table_name);
        execute format('alter table %I force row level security', table_name);
        execute format('create policy tenant_only on %I using (tenant = current_setting(''app.tenant'', true))'
                       ' with check (tenant = current_setting(''app.tenant'', true))', table_name);
        execute format('grant select, insert on %I to durable_agents_app', table_name);
        execute format('grant select on %I to durable_agents_auditor', table_name);
    end loop;
end $$;

grant update (requests_per_minute, tokens_per_minute, forced_open, changed_at) on provider_limit to durable_agents_app;
grant update (failures, streak_since, streak_from, openings, open_until, probe, probe_until, paused_until, recovering_since, steady_per_second, changes,
              requests_due, tokens_due, pace_due, load, load_at, sent, turned_away_at) on provider_gate to durable_agents_app;
