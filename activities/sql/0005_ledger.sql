-- The ledger: whose money a run spends, what of it is drawn, held, spent, or may have been spent.
-- Amounts are integers: micro-dollars and tokens. Rows that are above all tenants stand under the reserved tenant `*`.

-- What operators allow an account: of a user, an agent, the tenant, or everything together; per run, day or month (UTC).
-- The name `*` is the limit of each user or agent that has none of its own. No row, or null: unlimited. 0: nothing.
create table account_limit (
    tenant text not null,
    scope text not null check (scope in ('user', 'agent', 'tenant', 'all')),
    name text not null,
    period text not null check (period in ('run', 'day', 'month')),
    micros bigint check (micros >= 0),
    tokens bigint check (tokens >= 0),
    changed_by text not null,
    changed_at timestamptz not null default now(),
    primary key (tenant, scope, name, period),
    check ((scope = 'all') = (tenant = '*')),
    check ((scope in ('tenant', 'all')) = (name = ''))
);

-- What runs have drawn of an account in a day or a month: spent, held, and what they keep for their next calls.
create table account (
    tenant text not null,
    scope text not null check (scope in ('user', 'agent', 'tenant', 'all')),
    name text not null,
    period text not null check (period in ('day', 'month')),
    starts date not null,
    drawn_micros bigint not null default 0 check (drawn_micros >= 0),
    drawn_tokens bigint not null default 0 check (drawn_tokens >= 0),
    primary key (tenant, scope, name, period, starts)
) with (fillfactor = 50);  -- every draw updates its rows: room for the new version beside the old one

-- No draw passes a limit, whatever the code that draws believes. What was drawn before a limit was lowered stays drawn.
create function require_room() returns trigger language plpgsql as $$
declare
    most record;
begin
    if new.drawn_micros <= old.drawn_micros and new.drawn_tokens <= old.drawn_tokens then
        return new;
    end if;
    select micros, tokens into most from account_limit l
    where l.tenant = new.tenant and l.scope = new.scope and l.period = new.period and l.name in (new.name, '*')
    order by l.name = '*' limit 1;
    if (new.drawn_micros > old.drawn_micros and new.drawn_micros > most.micros)
        or (new.drawn_tokens > old.drawn_tokens and new.drawn_tokens > most.tokens) then
        raise exception 'a draw would pass the limit of % % a %', new.scope, new.name, new.period
            using errcode = 'check_violation', constraint = 'account_within_its_limit';
    end if;
    return new;
end $$;
create trigger account_within_its_limit before update on account for each row execute function require_room();

-- What a run has of its accounts on a day, by where it is: kept for the next calls, held for requests under way, held for requests
-- whose outcome nobody knows, spent. The four together are what it has drawn. A stand-in uses the envelope of the run it stands in for.
create table envelope (
    tenant text not null,
    run_id text not null,
    day date not null,
    user_id text not null,
    agent text not null,
    rest_micros bigint not null default 0 check (rest_micros >= 0),
    rest_tokens bigint not null default 0 check (rest_tokens >= 0),
    held_micros bigint not null default 0 check (held_micros >= 0),
    held_tokens bigint not null default 0 check (held_tokens >= 0),
    unknown_micros bigint not null default 0 check (unknown_micros >= 0),
    unknown_tokens bigint not null default 0 check (unknown_tokens >= 0),
    spent_micros bigint not null default 0 check (spent_micros >= 0),
    spent_tokens bigint not null default 0 check (spent_tokens >= 0),
    overrun_micros bigint not null default 0 check (overrun_micros >= 0),
    overrun_tokens bigint not null default 0 check (overrun_tokens >= 0),
    touched_at timestamptz not null default now(),
    primary key (tenant, run_id, day),
    foreign key (tenant, run_id) references run
) with (fillfactor = 50);

create index envelope_rest on envelope (tenant, touched_at) where rest_micros > 0 or rest_tokens > 0;
create index envelope_by_day on envelope (tenant, day);

-- Each movement, from one place to another: what leaves `debit` arrives at `credit`. Append-only. The id is its maker's.
create table ledger_entry (
    tenant text not null,
    run_id text not null,
    day date not null,
    kind text not null check (kind in ('draw', 'return', 'hold', 'settle', 'release', 'lose', 'overrun')),
    transfer text not null,
    debit text not null check (debit in ('accounts', 'rest', 'held', 'unknown', 'provider')),
    credit text not null check (credit in ('accounts', 'rest', 'held', 'unknown', 'spent', 'overrun')),
    micros bigint not null check (micros >= 0),
    tokens bigint not null check (tokens >= 0),
    created_at timestamptz not null default now(),
    primary key (tenant, run_id, transfer, kind, day),
    foreign key (tenant, run_id, day) references envelope,
    check (debit <> credit)
);

-- What moved lately, in tables that only grow: as small as nothing, and free to write.
create index ledger_entry_by_day on ledger_entry using brin (day) with (pages_per_range = 32, autosummarize = on);
create index model_attempt_by_day on model_attempt using brin (dispatched_at) with (pages_per_range = 32, autosummarize = on);

-- Every tenant that has ever drawn, so that the reconciler finds them all.
create table known_tenant (
    tenant text not null,
    name text not null,
    created_at timestamptz not null default now(),
    primary key (tenant, name)
);

-- What people are told, once each: written with what it is about, delivered later, and again until it is.
create table notification (
    tenant text not null,
    id text not null,
    kind text not null,
    title text not null,
    body text not null,
    created_at timestamptz not null default now(),
    tries integer not null default 0 check (tries >= 0),
    delivered_at timestamptz,
    primary key (tenant, id)
);

create index notification_open on notification (tenant, created_at) where delivered_at is null;

alter table run add column payer text;  -- the run whose envelope it uses; null: its own
alter table model_attempt add column hold_tokens bigint not null default 0 check (hold_tokens >= 0);
alter table model_attempt add column tokens bigint not null default 0 check (tokens >= 0);
alter table model_attempt add column gives_up_at timestamptz not null default now();  -- by then its worker has settled it, or is gone

create index model_attempt_by_time on model_attempt (tenant, dispatched_at);
create index model_attempt_open on model_attempt (tenant, state) where state in ('dispatched', 'unknown');

do $$
declare
    table_name text;
begin
    foreach table_name in array array['account_limit', 'account', 'envelope', 'ledger_entry', 'known_tenant', 'notification']
    loop
        execute format('alter table %I enable row level security', table_name);
        execute format('alter table %I force row level security', table_name);
        execute format('create policy tenant_only on %I using (tenant = current_setting(''app.tenant'', true))'
                       ' with check (tenant = current_setting(''app.tenant'', true))', table_name);
        execute format('grant select, insert on %I to durable_agents_app', table_name);
        execute format('grant select on %I to durable_agents_auditor', table_name);
    end loop;
end $$;

grant update (micros, tokens, changed_by, changed_at) on account_limit to durable_agents_app;
grant delete on account_limit to durable_agents_app;
grant update (drawn_micros, drawn_tokens) on account to durable_agents_app;
grant update (rest_micros, rest_tokens, held_micros, held_tokens, unknown_micros, unknown_tokens, spent_micros, spent_tokens,
              overrun_micros, overrun_tokens, touched_at) on envelope to durable_agents_app;
grant update (tries, delivered_at) on notification to durable_agents_app;
grant update (tokens) on model_attempt to durable_agents_app;
