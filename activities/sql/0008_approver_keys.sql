-- Who signs decisions with which key, which decisions were sent, and which signed ones have been used up.

-- A key belongs to one approver of a tenant for ever. Append-only but for its one revocation, which stays.
create table approver_key (
    tenant text not null,
    key_id text not null,
    approver text not null,
    public_key text not null check (public_key ~ '^[0-9a-f]{64}$'),
    added_by text not null,
    added_at timestamptz not null default now(),
    revoked_by text,
    revoked_at timestamptz,
    primary key (tenant, key_id),
    unique (tenant, public_key),
    check ((revoked_by is null) = (revoked_at is null))
);

create function keep_revoked() returns trigger language plpgsql as $$
begin
    raise exception 'key % is revoked, and stays so', old.key_id using errcode = 'check_violation', constraint = 'revoked_for_ever';
end $$;
create trigger revoked_for_ever before update on approver_key for each row when (old.revoked_at is not null)
    execute function keep_revoked();

-- What a human decided, written down before it is sent to the run, so that it is not lost with the message. Append-only.
create table sent_decision (
    tenant text not null,
    run_id text not null,
    approval_id text not null,
    digest text not null,
    body jsonb not null,
    sent_at timestamptz not null default now(),
    primary key (tenant, run_id, approval_id, digest),
    foreign key (tenant, run_id) references run
);

-- A signed decision has its effect once: written in the transaction of the effect's dispatch. Append-only.
create table used_nonce (
    tenant text not null,
    key_id text not null,
    nonce text not null,
    run_id text not null,
    approval_id text not null,
    signature text not null,
    used_at timestamptz not null default now(),
    primary key (tenant, key_id, nonce),
    foreign key (tenant, key_id) references approver_key,
    foreign key (tenant, run_id) references run
);

do $$
declare
    table_name text;
begin
    foreach table_name in array array['approver_key', 'sent_decision', 'used_nonce']
    loop
        execute format('alter table %I enable row level security', table_name);
        execute format('alter table %I force row level security', table_name);
        execute format('create policy tenant_only on %I using (tenant = current_setting(''app.tenant'', true))'
                       ' with check (tenant = current_setting(''app.tenant'', true))', table_name);
        execute format('grant select, insert on %I to durable_agents_app', table_name);
        execute format('grant select on %I to durable_agents_auditor', table_name);
    end loop;
end $$;

grant update (revoked_by, revoked_at) on approver_key to durable_agents_app;
