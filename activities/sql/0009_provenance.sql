-- Whose words a message may be, decided when it is written, and what a run was begun with: a run that stands in for one that has read
-- untrusted text has read it as well. Null: written before there were labels; then only the input is trusted.

alter table message add column label text check (label in ('trusted', 'untrusted'));
alter table run add column label text not null default 'trusted' check (label in ('trusted', 'untrusted'));
