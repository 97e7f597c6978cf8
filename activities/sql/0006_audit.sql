-- The audit log binds its writer: an entry follows the head, and the head moves with the entry and never back. Whoever owns the
-- tables can switch this off; that is what the hashes, and anchors outside the database, are for.

create function audit_entry_follows() returns trigger language plpgsql as $$
begin
    update audit_head set sequence = new.sequence, hash = new.hash
    where tenant = new.tenant and sequence = new.sequence - 1 and hash = new.previous;
    if not found then
        raise exception 'audit entry % of % does not follow the head of its chain', new.sequence, new.tenant
            using errcode = 'check_violation', constraint = 'audit_entry_follows';
    end if;
    return null;
end $$;
create trigger audit_entry_follows after insert on audit_entry for each row execute function audit_entry_follows();

create function audit_head_grows() returns trigger language plpgsql as $$
begin
    if new.sequence <> old.sequence + 1 or not exists (
        select from audit_entry e
        where e.tenant = new.tenant and e.sequence = new.sequence and e.hash = new.hash and e.previous = old.hash) then
        raise exception 'the head of the audit log of % moves by one entry at a time, and never back', new.tenant
            using errcode = 'check_violation', constraint = 'audit_head_grows';
    end if;
    return new;
end $$;
create trigger audit_head_grows before update on audit_head for each row execute function audit_head_grows();

create function audit_head_begins() returns trigger language plpgsql as $$
begin
    if new.sequence <> 0 or new.hash <> repeat('0', 64) then
        raise exception 'the audit log of % begins with entry 1', new.tenant
            using errcode = 'check_violation', constraint = 'audit_head_begins';
    end if;
    return new;
end $$;
create trigger audit_head_begins before insert on audit_head for each row execute function audit_head_begins();
