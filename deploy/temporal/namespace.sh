#!/bin/sh
# How does the namespace that runs live in come to be, with the attributes they are found by?
#
# Run by the job temporal-namespace after each server start. It makes what is missing and sets the retention; a second run
# changes nothing. A namespace and an attribute are known to the whole server up to a minute after they were made.
#
#   TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE   read by the temporal command itself (`namespace create` alone ignores the second)
#   RETENTION                              how long ended runs are kept, e.g. 30d
#   SEARCH_ATTRIBUTES                      name=type, separated by spaces
set -eu

# A server that has just opened its port, or made the namespace, may need a moment: 30 tries, 2 s apart.
until_it_works() {
	tries=0
	until output=$("$@" 2>&1); do
		tries=$((tries + 1))
		if [ "$tries" -ge 30 ]; then
			echo "error: $*: $output" >&2
			exit 1
		fi
		sleep 2
	done
}

until_it_works temporal operator cluster health
temporal operator namespace describe >/dev/null 2>&1 || until_it_works temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION"
until_it_works temporal operator namespace update --retention "$RETENTION"
for attribute in $SEARCH_ATTRIBUTES; do
	until_it_works temporal operator search-attribute create --name "${attribute%%=*}" --type "${attribute##*=}"
done
echo "namespace $TEMPORAL_NAMESPACE ready: retention $RETENTION, $SEARCH_ATTRIBUTES"
