-- Answers that may be given again: results of read tools, and of model calls whose agent says so. A tenant's own, and only for a while.

create table cache_entry (
    tenant text not null,
    key text not null,
    value jsonb not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    primary key (tenant, key)
);

create index cache_entry_expiry on cache_entry (tenant, expires_at);

alter table cache_entry enable row level security;
alter table cache_entry force row level security;
create policy tenant_only on cache_entry using (tenant = current_setting('app.tenant', true))
    with check (tenant = current_setting('app.tenant', true));
grant select, insert, delete on cache_entry to durable_agents_app;
grant update (value, created_at, expires_at) on cache_entry to durable_agents_app;
grant select on cache_entry to durable_agents_auditor;
