-- The last completed runs of an agent, by which a run that takes far more turns than usual is noticed.

create index run_by_agent on run (tenant, agent, ended_at desc) where status = 'completed';
