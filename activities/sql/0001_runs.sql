-- The tables of a run. Run by the owner role; the roles themselves are made by whoever sets up the server.
-- Every table carries its tenant first, and row-level security is enabled and forced on each (checked by a test).

create table run (
    tenant text not null,
    run_id text not null,
    first_execution text not null,
    request_digest text not null,
    agent text not null,
    agent_version text not null,
    user_id text not null,
    terms jsonb not null,
    status text not null default 'running',
    result jsonb,
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    primary key (tenant, run_id)
);

create table agent_version (
    tenant text not null,
    version text not null,
    pinned jsonb not null,
    created_at timestamptz not null default now(),
    primary key (tenant, version)
);

create table artifact (
    tenant text not null,
    digest text not null,
    body text not null,
    created_at timestamptz not null default now(),
    primary key (tenant, digest)
);

-- The transcript. Append-only: the application role may not update or delete.
-- Position 0 is the model's answer of the turn (of turn 0: the input), 1… are the results of its tool calls,
-- 1000 + n is what the model was told before logical call n.
create table message (
    tenant text not null,
    run_id text not null,
    turn integer not null check (turn >= 0),
    position integer not null check (position >= 0),
    digest text not null,
    bytes integer not null check (bytes >= 0),
    body jsonb not null,
    created_at timestamptz not null default now(),
    primary key (tenant, run_id, turn, position),
    foreign key (tenant, run_id) references run
);

-- One row a logical model call, once its outcome is final: whoever asks again gets it and pays nothing.
create table model_call (
    tenant text not null,
    run_id text not null,
    call integer not null check (call > 0),
    turn integer not null,
    model integer not null,
    outcome jsonb not null,
    created_at timestamptz not null default now(),
    primary key (tenant, run_id, call),
    foreign key (tenant, run_id) references run
);

-- One row a physical request to a provider, committed before it leaves.
create table model_attempt (
    tenant text not null,
    run_id text not null,
    call integer not null,
    attempt integer not null check (attempt > 0),
    fence bigint not null,
    provider text not null,
    model text not null,
    state text not null check (state in ('dispatched', 'settled', 'released', 'unknown')),
    hold_micros bigint not null check (hold_micros >= 0),
    cost_micros bigint not null default 0 check (cost_micros >= 0),
    overrun_micros bigint not null default 0 check (overrun_micros >= 0),
    failure text,
    request_id text,
    dispatched_at timestamptz not null default now(),
    settled_at timestamptz,
    primary key (tenant, run_id, call, attempt),
    foreign key (tenant, run_id) references run,
    check (cost_micros <= hold_micros)
);

-- One row a tool call, committed before the effect, settled after.
create table tool_dispatch (
    tenant text not null,
    run_id text not null,
    turn integer not null,
    index integer not null,
    effect_key text not null,
    tool text not null,
    effect text not null,
    arguments_digest text not null,
    state text not null check (state in ('dispatched', 'not_sent', 'settled', 'unknown')),
    tries integer not null check (tries >= 0),
    fence bigint not null,
    outcome jsonb,
    dispatched_at timestamptz not null default now(),
    settled_at timestamptz,
    primary key (tenant, run_id, turn, index),
    unique (tenant, effect_key),
    foreign key (tenant, run_id) references run,
    check ((state = 'settled') = (outcome is not null))
);

create table approval (
    tenant text not null,
    run_id text not null,
    approval_id text not null,
    turn integer not null,
    index integer not null,
    kind text not null,
    tool text not null,
    digest text not null,
    policy_digest text not null,
    request jsonb not null,
    requested_at timestamptz not null default now(),
    approved boolean,
    decided_by text,
    reason text,
    decided_at timestamptz,
    primary key (tenant, run_id, approval_id),
    foreign key (tenant, run_id) references run
);

-- The audit log: a hash chain per tenant. The head row is locked for each append, so the chain cannot fork.
create table audit_head (
    tenant text primary key,
    sequence bigint not null,
    hash text not null
);

create table audit_entry (
    tenant text not null,
    sequence bigint not null check (sequence > 0),
    previous text not null,
    hash text not null,
    at_micros bigint not null,
    run_id text not null,
    event text not null,
    body jsonb not null,
    primary key (tenant, sequence),
    unique (tenant, previous)
);

create index audit_entry_run on audit_entry (tenant, run_id, sequence);

do $$
declare
    table_name text;
begin
    foreach table_name in array array['run', 'agent_version', 'artifact', 'message', 'model_call', 'model_attempt',
                                      'tool_dispatch', 'approval', 'audit_head', 'audit_entry']
    loop
        execute format('alter table %I enable row level security', table_name);
        execute format('alter table %I force row level security', table_name);
        execute format('create policy tenant_only on %I using (tenant = current_setting(''app.tenant'', true))'
                       ' with check (tenant = current_setting(''app.tenant'', true))', table_name);
        execute format('grant select, insert on %I to durable_agents_app', table_name);
        execute format('grant select on %I to durable_agents_auditor', table_name);
    end loop;
end $$;

grant usage on schema public to durable_agents_app, durable_agents_auditor;
grant select on schema_migration to durable_agents_app, durable_agents_auditor;
-- What may change after it was written; everything else is append-only.
grant update (status, result, ended_at) on run to durable_agents_app;
grant update (state, cost_micros, overrun_micros, failure, request_id, settled_at) on model_attempt to durable_agents_app;
grant update (state, tries, fence, outcome, settled_at, dispatched_at) on tool_dispatch to durable_agents_app;
grant update (approved, decided_by, reason, decided_at) on approval to durable_agents_app;
grant update (sequence, hash) on audit_head to durable_agents_app;
