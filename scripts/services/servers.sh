# shellcheck shell=bash
# Part of scripts/services.sh: each server's program, ports, configuration and command line.
# Every server works in $SERVICES_DIR/<name>, which is how its processes are told from others.

# The name of each server's processes.
# shellcheck disable=SC2034  # used by scripts/services.sh
declare -A PROGRAM=([postgres]=postgres [redis]=redis-server [kafka]=java [hapi]=java [orthanc]=Orthanc)

ports_of() {
  case $1 in
    postgres) echo "$POSTGRES_PORT" ;;
    redis) echo "$REDIS_PORT" ;;
    kafka) echo "$KAFKA_PORT $KAFKA_CONTROLLER_PORT $KAFKA_PROXIED_PORT" ;;
    hapi) echo "$HAPI_PORT" ;;
    orthanc) echo "$ORTHANC_HTTP_PORT $ORTHANC_DICOM_PORT" ;;
    *) echo - ;;
  esac
}

# Seconds until a started server must answer.
patience_of() { case $1 in hapi) echo 600 ;; *) echo 180 ;; esac; }

# PostgreSQL waits for its clients on SIGTERM and closes their connections on SIGINT.
stop_signal_of() { case $1 in postgres) echo INT ;; *) echo TERM ;; esac; }

# Sets COMMAND, the command line of server $1.
command_of() {
  local folder=$SERVICES_DIR/$1
  case $1 in
    postgres) as_postgres "$(postgres_bin)/postgres" -D "$folder/data" ;;
    redis) COMMAND=(redis-server "$folder/redis.conf") ;;
    kafka)
      COMMAND=(java -Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError
        -Djava.awt.headless=true "-Dlog4j2.configurationFile=file:$folder/log4j2.properties"
        -cp "$(class_path "$KAFKA_JAVA")" kafka.Kafka "$folder/server.properties")
      ;;
    hapi)
      # WRITE_DELAY=0: without it H2 loses acknowledged writes when the process is killed
      COMMAND=(java -Xmx640m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError
        -Djava.awt.headless=true "-Dhapi.port=$HAPI_PORT"
        "-Dhapi.jdbc=jdbc:h2:file:$folder/data/fhir;WRITE_DELAY=0;DB_CLOSE_ON_EXIT=FALSE"
        -cp "$(class_path "$HAPI_JAVA")" echo.HapiServer)
      ;;
    orthanc) COMMAND=(Orthanc "$folder/orthanc.json") ;;
  esac
}

# --- PostgreSQL ------------------------------------------------------------------------------------------------

# Sets COMMAND to the given one, run as the package's user when we are root: PostgreSQL refuses to run as root.
as_postgres() {
  COMMAND=("$@")
  [ "$(id -u)" != 0 ] || COMMAND=(setpriv --reuid=postgres --regid=postgres --init-groups -- "$@")
}

prepare_postgres() {
  local folder=$SERVICES_DIR/postgres data=$SERVICES_DIR/postgres/data bin
  bin=$(postgres_bin)
  if [ ! -f "$data/complete" ]; then # a first set-up that was cut off is done again
    rm -rf "$data"
    mkdir -m 700 "$data"
    [ "$(id -u)" != 0 ] || chown postgres: "$data"
    cd "$folder" || return # the caller's folder may be closed to the package's user
    as_postgres "$bin/initdb" -D "$data" --username=postgres --encoding=UTF8 --locale=C.UTF-8 --auth=reject
    "${COMMAND[@]}"
    # no server runs yet: in single-user mode nobody has to be let in for this
    as_postgres "$bin/postgres" --single -D "$data" postgres
    printf '%s\n' 'CREATE ROLE echo LOGIN CREATEDB' 'CREATE DATABASE echo OWNER echo' | "${COMMAND[@]}"
    touch "$data/complete"
  fi
  # No process of ours is left when this runs. After a kill PostgreSQL still takes the old process id for a living one as
  # long as nobody has collected the dead process, which in a container may never happen.
  rm -f "$data/postmaster.pid"
  cat > "$data/pg_hba.conf" <<'CONF'
# the test user, from this machine, without a password; nobody else
host all echo 127.0.0.1/32 trust
CONF
  cat > "$data/postgresql.auto.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $POSTGRES_PORT
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
fsync = on
CONF
}

warm_postgres() { :; }

# --- Redis -----------------------------------------------------------------------------------------------------

prepare_redis() {
  local folder=$SERVICES_DIR/redis
  mkdir -p "$folder/data"
  # many databases: each test takes one of its own
  cat > "$folder/redis.conf" <<CONF
bind 127.0.0.1
port $REDIS_PORT
dir "$folder/data"
databases 256
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
CONF
}

warm_redis() { :; }

# --- Kafka: one node, broker and controller in one --------------------------------------------------------------

prepare_kafka() {
  local folder=$SERVICES_DIR/kafka
  build_java kafka "$KAFKA_JAVA" || return 1
  cat > "$folder/server.properties" <<CONF
process.roles=broker,controller
node.id=1
# PROXIED is for clients behind a proxy that a test opens: they are told the proxy's address
listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,PROXIED://127.0.0.1:$KAFKA_PROXIED_PORT,CONTROLLER://127.0.0.1:$KAFKA_CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,PROXIED://127.0.0.1:$KAFKA_PROXY_PORT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.quorum.voters=1@127.0.0.1:$KAFKA_CONTROLLER_PORT
log.dirs=$folder/data
auto.create.topics.enable=false
num.partitions=6
# one node: every internal topic has one replica, and few partitions so that the start is quick
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=3
# groups form at once, and tests of crashes may ask for a session timeout of one second
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# after a kill a new start waits until the old registration has lapsed: 9 s by default
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
# 128 MiB of heap by default
log.cleaner.dedupe.buffer.size=4194304
CONF
  cat > "$folder/log4j2.properties" <<'CONF'
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
CONF
  [ -f "$folder/data/meta.properties" ] || java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    "-Dlog4j2.configurationFile=file:$folder/log4j2.properties" -cp "$(class_path "$KAFKA_JAVA")" \
    kafka.tools.StorageTool format -c "$folder/server.properties" -t \
    "$(python3 -c 'import base64, uuid; print("k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22])')"
}

warm_kafka() { :; }

# --- HAPI FHIR R4 ----------------------------------------------------------------------------------------------

prepare_hapi() {
  mkdir -p "$SERVICES_DIR/hapi/data"
  build_java hapi "$HAPI_JAVA"
}

# The first validation loads the definitions of FHIR, which takes longer than a client waits: do it before the tests.
warm_hapi() { helper warm_hapi >> "$SERVICES_DIR/hapi/hapi.log" 2>&1; }

# --- Orthanc ---------------------------------------------------------------------------------------------------

prepare_orthanc() {
  local folder=$SERVICES_DIR/orthanc
  mkdir -p "$folder/data"
  cp "$SOURCES/orthanc/archive.lua" "$folder/archive.lua"
  cat > "$folder/orthanc.json" <<CONF
{
  "Name": "echo-cxr test archive",
  "StorageDirectory": "$folder/data",
  "IndexDirectory": "$folder/data",
  "Plugins": [],
  "LuaScripts": ["$folder/archive.lua"],
  "HttpPort": $ORTHANC_HTTP_PORT,
  "RemoteAccessAllowed": false,
  "AuthenticationEnabled": false,
  "DicomAet": "$ORTHANC_AET",
  "DicomPort": $ORTHANC_DICOM_PORT,
  "DicomCheckCalledAet": false,
  "DicomAlwaysAllowEcho": true,
  "DicomAlwaysAllowStore": true,
  "DicomModalitiesInDatabase": true,
  "AcceptedTransferSyntaxes": ["1.2.840.10008.1.*"],
  "UnknownSopClassAccepted": true,
  "OverwriteInstances": true,
  "StorageCommitmentReportsSize": 1000,
  "StableAge": 1,
  "DicomAssociationCloseDelay": 1,
  "ConcurrentJobs": 2,
  "HttpThreadsCount": 16
}
CONF
}

warm_orthanc() { :; }
