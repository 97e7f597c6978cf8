-- Policies that were put in force without a deploy, and every decision that was made by a policy.
-- Version 0 of an agent's policy is its own policy.yaml, which is pinned with the agent, and has no row here.

create table policy_version (
    tenant text not null,
    agent text not null,
    version integer not null check (version > 0),
    document jsonb,  -- null: from this version on the agent's own policy.yaml again
    digest text,
    changed_by text not null,
    reason text not null,
    created_at timestamptz not null default now(),
    primary key (tenant, agent, version),
    check ((document is null) = (digest is null))
);

-- Which version holds. No row: version 0.
create table policy_in_force (
    tenant text not null,
    agent text not null,
    version integer not null,
    primary key (tenant, agent),
    foreign key (tenant, agent, version) references policy_version
);

-- What was decided about a tool call under which policy, and what its rules could look at: so that another policy can be tried on it.
create table policy_decision (
    tenant text not null,
    run_id text not null,
    turn integer not null,
    index integer not null,
    policy_version integer not null,
    agent text not null,
    user_id text not null,
    tool text not null,
    ruling text not null check (ruling in ('allow', 'deny', 'ask')),
    rule integer,
    reason text not null,
    policy_digest text not null,
    facts text,  -- JSON, to the last digit as the rules saw it; null: too large to be kept
    created_at timestamptz not null default now(),
    primary key (tenant, run_id, turn, index, policy_version),
    foreign key (tenant, run_id) references run
);

create index policy_decision_by_agent on policy_decision (tenant, agent, created_at);
create index run_by_start on run (tenant, agent, created_at desc);

do $$
declare
    table_name text;
begin
    foreach table_name in array array['policy_version', 'policy_in_force', 'policy_decision']
    loop
        execute format('alter table %I enable row level security', table_name);
        execute format('alter table %I force row level security', table_name);
        execute format('create policy tenant_only on %I using (tenant = current_setting(''app.tenant'', true))'
                       ' with check (tenant = current_setting(''app.tenant'', true))', table_name);
        execute format('grant select, insert on %I to durable_agents_app', table_name);
        execute format('grant select on %I to durable_agents_auditor', table_name);
    end loop;
end $$;

grant update (version) on policy_in_force to durable_agents_app;
