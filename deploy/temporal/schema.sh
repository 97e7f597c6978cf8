#!/bin/sh
# How do Temporal's two databases get their schema, or the one of a newer release?
#
# Run by the job temporal-schema before each server start. Creating what is there and updating what is up to date do nothing.
# Upgrades go one minor release at a time: this job first, with the new tag, then the server.
set -eu

update() {
	temporal-sql-tool --db "$1" create
	temporal-sql-tool --db "$1" setup-schema -v 0.0
	temporal-sql-tool --db "$1" update-schema -d "/etc/temporal/schema/postgresql/v12/$2/versioned"
}

update temporal temporal
update temporal_visibility visibility
