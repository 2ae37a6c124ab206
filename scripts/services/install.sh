# shellcheck shell=bash
# Part of scripts/services.sh: what has to be installed or built before a server can start.

PATH=$PATH:/usr/sbin # where Debian keeps Orthanc, also for users without it in their path

have() { command -v "$1" > /dev/null; }

# The folder of PostgreSQL's programs: Debian keeps them outside the search path, one folder per version.
postgres_bin() {
  local folder
  for folder in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V -r); do
    if [ -x "$folder/postgres" ]; then echo "$folder"; return; fi
  done
  have initdb && dirname "$(command -v initdb)"
}

# What server or tool $1 still lacks, as Debian package names.
missing_packages() {
  case $1 in
    postgres) postgres_bin > /dev/null || echo postgresql ;;
    redis) have redis-server || echo redis-server ;;
    kafka | hapi | validator)
      have java && have javac || echo default-jdk-headless
      have mvn || echo maven
      ;;
    orthanc)
      have Orthanc || echo orthanc
      [ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || echo orthanc-dicomweb
      ;;
    dcmtk) have storescu || echo dcmtk ;;
    dicom3tools) have dciodvfy || echo dicom3tools ;;
    chromium) have chromium || have chromium-browser || have google-chrome || echo chromium ;;
  esac
}

may_install() { [ "${ECHO_CXR_NO_INSTALL:-0}" != 1 ] && [ "$(id -u)" = 0 ] && have apt-get; }

# Install the packages of all names at once. What cannot be had is found by `need`; the others start nevertheless.
install_packages() {
  local packages log=$SERVICES_DIR/install.log
  packages=$(for name in "$@"; do missing_packages "$name"; done | sort -u)
  if [ -z "$packages" ] || ! may_install; then return 0; fi
  say install "apt-get install ${packages//$'\n'/ } (log: $log)"
  (
    flock -w 900 8
    apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }
    apt_get update || echo "going on with the package lists at hand"
    # shellcheck disable=SC2086  # a list of words is meant
    apt_get install -y --no-install-recommends $packages && exit
    for package in $packages; do # one that does not exist here must not keep the others away
      apt_get install -y --no-install-recommends "$package" || echo "$package could not be installed"
    done
  ) 8> "$CACHE_DIR/apt.lock" > "$log" 2>&1 || true
  hash -r
}

# Succeeds when everything for $1 is installed, else says what is missing and what to do.
need() {
  local missing
  missing=$(missing_packages "$1" | tr '\n' ' ')
  [ -n "$missing" ] || return 0
  if may_install; then
    fail "$1" "could not be installed: ${missing% } (see $SERVICES_DIR/install.log)"
  elif have apt-get; then
    fail "$1" "not installed; as root: apt-get install ${missing% }"
  else
    fail "$1" "not installed, and there is no apt-get here; it needs what Debian calls: ${missing% }"
  fi
}

# Build the Java launcher $1 into folder $2 unless it is there: its class files, and a file with the class path.
# The jars stay in a Maven repository beside it. One build at a time: Maven's repository is not made for more.
build_java() (
  name=$1 target=$2
  exec 7> "$CACHE_DIR/maven.lock"
  flock -w 900 7
  if [ -f "$target/classpath" ] && jars_present "$target/classpath"; then exit 0; fi
  mkdir -p "$CACHE_DIR/java"
  rm -rf "$target" "$target.new"
  for attempt in 1 2 3; do
    # MAVEN_ARGS is the user's, for a mirror or a proxy; Maven older than 3.9 does not read it by itself
    # shellcheck disable=SC2086  # a list of words is meant
    if mvn -B -ntp -q -Dstyle.color=never ${MAVEN_ARGS:-} -f "$SOURCES/$name/pom.xml" \
      -Dmaven.repo.local="$CACHE_DIR/m2" -Dbuild.target="$target.new" compile dependency:build-classpath \
      -Dmdep.outputFile="$target.new/classpath" -Dmdep.includeScope=runtime > "$target.log" 2>&1 7>&-; then
      mkdir -p "$target.new/classes" # Kafka has no code of ours
      mv "$target.new" "$target"
      exit 0
    fi
    echo "Maven failed (attempt $attempt of 3), see $target.log" >&2
    sleep 3
  done
  tail -n 20 "$target.log" >&2
  exit 1
)

jars_present() {
  local jar
  while IFS= read -r -d : jar || [ -n "$jar" ]; do
    [ -f "${jar%$'\n'}" ] || return 1
  done < "$1"
}

# The class path of a launcher that was built into folder $1.
class_path() { echo "$1/classes:$(cat "$1/classpath")"; }
