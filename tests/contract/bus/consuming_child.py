"""Consumes until it is killed: prints each value, waits, commits. Arguments: group, topic, pause in seconds."""

import sys
import time

from pipeline.buses import make_bus
from pipeline.settings import BusSettings

group, topic, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
consumer = make_bus(BusSettings()).consumer(group, [topic])
while True:
    for record in consumer.poll(0.5):
        print(record.value.decode(), flush=True)
        time.sleep(pause_s)
        consumer.commit(record)
