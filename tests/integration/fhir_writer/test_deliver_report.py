"""One report from its events to the resources at a real FHIR server."""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fhir_writer.domain import codes, resources
from pipeline.events import Event
from unit.fhir_writer.samples import DEFAULT_FINDINGS, completed, draft, found, generated, new_uid, patient, skipped


def plain_text(report: dict[str, Any]) -> str:
    form = next(form for form in report["presentedForm"] if form["contentType"] == "text/plain")
    return base64.b64decode(form["data"]).decode()


def test_a_report_is_created_with_everything_it_refers_to(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(
        completed(uid, mrn=mrn),
        generated(uid, flags=("out_of_domain",), notices=("The image lies outside what this model was trained on.",)),
    )
    assert writer.run_due() == 1

    (event,) = writer.events()
    assert event["type"] == "imaging.report.delivered.v1", f"{event}"
    (report,) = ehr.reports(uid)
    assert (event["result"], event["resource_id"]) == ("created", report["id"])
    assert event["resource_version"] == report["meta"]["versionId"]
    assert report["status"] == "preliminary"
    assert report["subject"]["reference"].endswith(f"Patient/{registered['id']}")
    assert report["effectiveDateTime"] == "2026-01-05T07:58:30+01:00"
    assert "The image lies outside what this model was trained on." in plain_text(report)
    assert "DEVAST" in [label["code"] for label in report["meta"]["security"]]
    assert "ai-draft" in [label["code"] for label in report["meta"]["tag"]]
    observations = ehr.observations(uid)
    assert {r["reference"].split("/")[-1] for r in report["result"]} == {o["id"] for o in observations.values()}
    assert sorted(observations) == ["nodule", "pleural_effusion", "pneumothorax"]
    assert observations["pleural_effusion"]["valueCodeableConcept"]["coding"][0]["code"] == "52101004"
    device_id = observations["nodule"]["device"]["reference"].split("/")[-1]
    (device,) = [d for d in ehr.search("Device", identifier=f"{codes.DEVICE_SYSTEM}|") if d["id"] == device_id]
    assert device["version"][0]["value"] == "0a1b2c3d"
    (provenance,) = ehr.provenances(report)
    assert provenance["agent"][0]["who"]["reference"].endswith(f"Device/{device_id}")


def test_a_second_version_updates_the_same_resource(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    (first,) = ehr.reports(uid)
    writer.feed(
        completed(uid, 2, mrn=mrn, views=("PA", "LL")),
        generated(
            uid,
            2,
            impression="No acute abnormality.",
            structured=(found("pneumothorax"), found("cardiomegaly", "present")),
        ),
    )
    writer.run_due()

    (second,) = ehr.reports(uid)
    assert second["id"] == first["id"]
    assert int(second["meta"]["versionId"]) > int(first["meta"]["versionId"])
    assert second["conclusion"] == "No acute abnormality."
    assert [event["result"] for event in writer.events()] == ["created", "updated"]
    observations = ehr.observations(uid)
    assert len(second["result"]) == 2
    assert observations["cardiomegaly"]["status"] == observations["pneumothorax"]["status"] == "preliminary"
    # What the newer draft no longer speaks of must not stand in the chart as if it still did.
    assert observations["pleural_effusion"]["status"] == observations["nodule"]["status"] == "entered-in-error"
    assert len(ehr.provenances(second)) == 2


def test_the_same_draft_again_changes_nothing(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    event = generated(uid)
    writer.feed(completed(uid, mrn=mrn), event)
    writer.run_due()
    (before,) = ehr.reports(uid)
    writer.feed(event)
    assert writer.run_due() == 0  # the inbox knows it
    writer.feed(generated(uid))  # a worker that died after publishing publishes once more, with another event id
    assert writer.run_due() == 1
    (after,) = ehr.reports(uid)
    assert after["meta"]["versionId"] == before["meta"]["versionId"]
    assert [event["result"] for event in writer.events()] == ["created", "unchanged"]
    assert len(ehr.provenances(after)) == 1


def test_a_draft_of_an_older_version_is_left_aside(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, 1, mrn=mrn), completed(uid, 2, mrn=mrn), generated(uid, 2), generated(uid, 1))
    writer.run_due()
    assert [event["study_version"] for event in writer.events()] == [2]
    assert writer.run_due() == 0


def test_parallel_deliveries_of_one_report_make_one_report(ehr, make_writer, mrn, registered):
    uid, together = new_uid(), 12
    writers = [make_writer(ehr.base_url) for _ in range(together)]
    gate = threading.Barrier(together)

    def deliver(writer: Any) -> list[dict[str, Any]]:
        writer.feed(completed(uid, mrn=mrn), generated(uid))
        gate.wait(120)
        for _ in range(30):
            writer.run_due()
            done = writer.events()
            if any(event["type"] == "imaging.report.delivered.v1" for event in done):
                return done
            writer.advance(200)
        raise AssertionError("not delivered")

    with ThreadPoolExecutor(together) as pool:
        ends = [events[-1] for events in pool.map(deliver, writers)]
    (report,) = ehr.reports(uid)
    assert {end["resource_id"] for end in ends} == {report["id"]}
    assert [end["result"] for end in ends].count("created") == 1
    assert len(ehr.observations(uid)) == len(DEFAULT_FINDINGS)
    assert len(ehr.provenances(report)) == 1


def test_the_first_reports_of_a_model_at_once_can_all_be_amended(ehr, make_writer, mrn, registered):
    """All of them make its Device: who loses the race must not lose a label, nor the right to a next version."""
    model = (f"model-{new_uid()[-12:]}", "1")
    uids = [new_uid() for _ in range(8)]
    writers = {uid: make_writer(ehr.base_url) for uid in uids}
    gate = threading.Barrier(len(uids))

    def deliver(uid: str, version: int) -> str:
        writer = writers[uid]
        writer.feed(
            completed(uid, version, mrn=mrn), generated(uid, version, impression=f"{uid} {version}", model=model)
        )
        gate.wait(120)
        for _ in range(30):
            writer.run_due()
            if done := [e for e in writer.events() if e["type"] == "imaging.report.delivered.v1"]:
                return str(done[-1]["result"])
            writer.advance(200)
        raise AssertionError("not delivered")

    for version, result in ((1, "created"), (2, "updated")):
        with ThreadPoolExecutor(len(uids)) as pool:
            assert [*pool.map(deliver, uids, [version] * len(uids))] == [result] * len(uids)
        for uid in uids:
            (report,) = ehr.reports(uid)
            for resource in (report, *ehr.observations(uid).values()):
                tags = {tag["code"] for tag in resource["meta"]["tag"]}
                assert {codes.AI_DRAFT.code, resources.content_tag(resource)} <= tags


def test_threads_of_one_writer_never_work_on_one_study_at_once(sekmet, make_writer, postgres_url):
    writer = make_writer(sekmet.base_url, database_url=postgres_url)
    uids = [new_uid() for _ in range(20)]
    for uid in uids:
        writer.feed(completed(uid), generated(uid))
    with ThreadPoolExecutor(8) as pool:
        takes = pool.map(lambda _: writer.deliveries.claim(writer.clock.now(), 5), range(16))
        taken = [job for jobs in takes for job in jobs]
    assert sorted(job.study_instance_uid for job in taken) == sorted(uids)
    assert len({job.lease_id for job in taken}) == 20


def test_a_skip_and_an_older_draft_that_come_at_once_leave_nothing_to_deliver(sekmet, make_writer, postgres_url):
    writer = make_writer(sekmet.base_url, database_url=postgres_url)
    uids = [new_uid() for _ in range(30)]
    with ThreadPoolExecutor(2) as pool:
        for uid in uids:
            both = threading.Barrier(2)

            def feed(event: Event, both: threading.Barrier = both) -> None:
                both.wait(120)
                writer.feed(event)

            list(pool.map(feed, [skipped(uid), generated(uid)]))
    assert writer.deliveries.claim(writer.clock.now(), 100) == []
    assert {row["state"] for row in writer.deliveries.listed(None, 100)} <= {"withdrawn"}


def test_deleting_by_age_and_newer_drafts_go_together(sekmet, make_writer, postgres_url):
    writer = make_writer(sekmet.base_url, database_url=postgres_url)
    uids = [new_uid() for _ in range(40)]
    for uid in uids:
        writer.feed(generated(uid, 2), skipped(uid, 3))
    writer.advance(100)
    with ThreadPoolExecutor(3) as pool:
        newer = [pool.submit(writer.feed, generated(uid, 4)) for uid in reversed(uids)]
        clock = writer.clock.now()
        list(pool.map(lambda _: writer.deliveries.expire(clock, 5, clock), range(8)))
        for future in newer:
            future.result()
    assert len(writer.deliveries.listed("pending", 100)) == 40


def test_what_a_killed_process_had_taken_is_taken_over_after_its_lease(sekmet, make_writer):
    writer, uid = make_writer(sekmet.base_url), new_uid()
    writer.feed(completed(uid), generated(uid))
    (lost,) = writer.deliveries.claim(writer.clock.now(), 5)
    assert writer.deliveries.claim(writer.clock.now(), 5) == []
    writer.advance(10)
    writer.deliveries.renew_leases(writer.clock.now())
    writer.advance(10)
    assert writer.deliveries.claim(writer.clock.now(), 5) == []  # renewed: its holder lives
    writer.advance(6)
    (taken,) = writer.deliveries.claim(writer.clock.now(), 5)
    assert (taken.study_instance_uid, taken.lease_id == lost.lease_id) == (uid, False)


def test_a_newer_draft_during_a_delivery_is_delivered_after_it(ehr, make_writer, mrn, registered, monkeypatch):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, 1, mrn=mrn), completed(uid, 2, mrn=mrn), generated(uid, 1))
    transaction = writer.fhir.transaction

    def meanwhile(bundle):
        writer.feed(generated(uid, 2, impression="Two."))
        return transaction(bundle)

    with monkeypatch.context() as patch:
        patch.setattr(writer.fhir, "transaction", meanwhile)
        writer.run_due()
    assert writer.row(uid)["state"] == "pending"
    writer.run_due()
    assert [(e["study_version"], e["result"]) for e in writer.events()] == [(1, "created"), (2, "updated")]
    assert ehr.reports(uid)[0]["conclusion"] == "Two."


def test_a_draft_is_not_sent_once_a_newer_one_has_come(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, 1, mrn=mrn), completed(uid, 2, mrn=mrn), generated(uid, 1))
    (job,) = writer.deliveries.claim(writer.clock.now(), 1)
    writer.feed(generated(uid, 2, impression="Two."))
    writer.deliver.attempt(job)
    assert writer.events() == []
    assert writer.run_due() == 1  # its lease was given back
    assert [(e["study_version"], e["result"]) for e in writer.events()] == [(2, "created")]


def test_a_device_that_a_race_made_twice_stops_no_report(ehr, make_writer, mrn, registered, unique):
    model = ("echo-phantom-demo", unique)
    for _ in range(2):  # conditional create is no lock at every server
        ehr.create(resources.device(draft(model=model)))
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid, model=model))
    writer.run_due()
    assert [event.get("result") for event in writer.events()] == ["created"]
    device = ehr.observations(uid)["nodule"]["device"]["reference"]
    (provenance,) = ehr.provenances(ehr.reports(uid)[0])
    assert provenance["agent"][0]["who"]["reference"].endswith(device)
    writer.feed(generated(uid, model=model))
    writer.run_due()
    assert [event.get("result") for event in writer.events()] == ["unchanged"]


def test_a_report_before_its_study_waits(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(generated(uid))
    writer.run_due()
    assert (writer.row(uid)["state"], writer.row(uid)["reason_code"]) == ("pending", "waiting_for_study")
    assert writer.run_due() == 0
    writer.feed(completed(uid, mrn=mrn))
    assert writer.run_due() == 1  # woken, no time has passed
    assert [event["result"] for event in writer.events()] == ["created"]


def test_an_unknown_patient_parks_and_is_delivered_after_registration_and_replay(ehr, make_writer, mrn):
    writer, uid = make_writer(ehr.base_url, patient_grace_s=20, patient_recheck_s=0), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    for _ in range(12):
        writer.run_due()
        writer.advance(2)
    (event,) = writer.events()
    assert (event["type"], event["reason"]["code"]) == ("imaging.report.rejected.v1", "patient_not_found")
    assert (event["person_must_act"], event["next_attempt_at"]) == (True, None)
    assert writer.row(uid)["state"] == "parked"
    writer.advance(100_000)
    assert writer.run_due() == 0
    assert ehr.reports(uid) == []

    ehr.create(patient(mrn, codes.DEFAULT_PATIENT_SYSTEM))
    assert writer.deliveries.replay(writer.clock.now(), uid) == 1
    writer.run_due()
    assert [event["result"] for event in writer.events()] == ["created"]


def test_a_late_registration_is_noticed_by_itself(ehr, make_writer, mrn):
    writer, uid = make_writer(ehr.base_url, patient_grace_s=0, patient_recheck_s=300), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    assert writer.events()[0]["next_attempt_at"] == "2026-01-05T08:05:31.000000Z"
    writer.advance(301)
    assert writer.run_due() == 1
    assert writer.events() == []  # still unknown: said already
    ehr.create(patient(mrn, codes.DEFAULT_PATIENT_SYSTEM))
    writer.advance(301)
    writer.run_due()
    assert [event["result"] for event in writer.events()] == ["created"]


@pytest.mark.parametrize(
    ("others", "code"),
    [
        ([{"birthDate": "1961-02-28"}], "patient_mismatch"),
        ([{"gender": "male"}], "patient_mismatch"),
        ([{}, {}], "patient_ambiguous"),
        ([{"active": False}], "patient_inactive"),
    ],
)
def test_a_doubtful_patient_parks(ehr, make_writer, mrn, others, code):
    for other in others:
        ehr.create(patient(mrn, codes.DEFAULT_PATIENT_SYSTEM, **other))
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    (event,) = writer.events()
    assert (event["reason"]["code"], event["person_must_act"]) == (code, True)
    assert ehr.reports(uid) == []


@pytest.mark.parametrize(
    "touch",
    [
        {"status": "final"},
        {"conclusion": "A radiologist wrote something else."},
        {"resultsInterpreter": [{"display": "A radiologist"}]},
    ],
)
def test_a_report_that_a_person_has_worked_on_is_not_overwritten(ehr, make_writer, mrn, registered, touch):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    (draft,) = ehr.reports(uid)
    touched = ehr.put(draft | touch)
    writer.feed(completed(uid, 2, mrn=mrn), generated(uid, 2, impression="Another draft."))
    writer.run_due()
    event = writer.events()[-1]
    assert (event["reason"]["code"], event["person_must_act"]) == ("changed_by_human", True)
    assert ehr.reports(uid)[0]["meta"]["versionId"] == touched["meta"]["versionId"]
    writer.deliveries.replay(writer.clock.now(), uid)
    writer.run_due()  # asking again does not overwrite it either
    assert ehr.reports(uid)[0]["meta"]["versionId"] == touched["meta"]["versionId"]


def rewritten(report: dict[str, Any]) -> None:
    """As software does that keeps size and hash right."""
    form = next(form for form in report["presentedForm"] if form["contentType"] == "text/plain")
    data = plain_text(report).replace("There is a small", "There is no").encode()
    digest = base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()
    form |= {"data": base64.b64encode(data).decode(), "size": len(data), "hash": digest}


@pytest.mark.parametrize(
    "touch",
    [
        lambda report: report.pop("conclusion"),
        lambda report: report.update(conclusion="Small left pleural effusion"),
        lambda report: report.pop("conclusionCode"),
        lambda report: report["presentedForm"].append({"contentType": "application/pdf", "url": "https://ehr.test/1"}),
        rewritten,
    ],
    ids=["conclusion removed", "conclusion shortened", "code removed", "document added", "text rewritten"],
)
def test_a_small_change_by_a_person_counts_too(ehr, make_writer, mrn, registered, touch):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    (draft,) = ehr.reports(uid)
    touch(draft)
    touched = ehr.put(draft)
    writer.feed(completed(uid, 2, mrn=mrn), generated(uid, 2, impression="Another draft."))
    writer.run_due()
    assert writer.events()[-1]["reason"]["code"] == "changed_by_human"
    assert ehr.reports(uid)[0]["meta"]["versionId"] == touched["meta"]["versionId"]


def test_a_finding_that_a_person_has_corrected_is_not_overwritten(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    nodule = ehr.observations(uid)["nodule"]
    ehr.put(nodule | {"valueCodeableConcept": {"coding": [codes.STATES["absent"].coding()]}})
    writer.feed(completed(uid, 2, mrn=mrn), generated(uid, 2, impression="Another draft."))
    writer.run_due()
    assert writer.events()[-1]["reason"]["code"] == "changed_by_human"
    assert ehr.observations(uid)["nodule"]["valueCodeableConcept"]["coding"][0]["display"] == "Absent"


def test_what_the_ehr_added_to_the_report_survives_an_update(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    (draft,) = ehr.reports(uid)
    encounter = ehr.create({"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"}})
    number = {"system": "urn:oid:2.25.123456789012345678901234567890", "value": str(uuid.uuid4())}
    ehr.put(
        draft
        | {"encounter": {"reference": f"Encounter/{encounter['id']}"}, "identifier": [*draft["identifier"], number]}
    )
    writer.feed(completed(uid, 2, mrn=mrn), generated(uid, 2, impression="Second draft."))
    writer.run_due()
    (updated,) = ehr.reports(uid)
    assert updated["conclusion"] == "Second draft."
    assert updated["encounter"]["reference"].endswith(f"Encounter/{encounter['id']}")
    assert number in updated["identifier"]


def test_the_order_is_found_by_accession_number(ehr, make_writer, mrn, registered, unique):
    order = ehr.create(
        {
            "resourceType": "ServiceRequest",
            "status": "active",
            "intent": "order",
            "subject": {"reference": f"Patient/{registered['id']}"},
            "identifier": [{"system": "urn:oid:2.25.223456789012345678901234567890", "value": f"ACC-{unique}"}],
        }
    )
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn, accession=f"ACC-{unique}"), generated(uid))
    writer.run_due()
    (based_on,) = ehr.reports(uid)[0]["basedOn"]
    assert based_on["reference"].endswith(f"ServiceRequest/{order['id']}")
    assert based_on["identifier"]["value"] == f"ACC-{unique}"


def test_a_corrected_patient_or_order_leaves_nothing_of_the_wrong_one(ehr, make_writer, mrn, registered, unique):
    def order(number: str, person: dict[str, Any]) -> dict[str, Any]:
        return ehr.create(
            {
                "resourceType": "ServiceRequest",
                "status": "active",
                "intent": "order",
                "subject": {"reference": f"Patient/{person['id']}"},
                "identifier": [{"system": "urn:oid:2.25.223456789012345678901234567890", "value": number}],
            }
        )

    right = ehr.create(patient(f"{mrn}-2", codes.DEFAULT_PATIENT_SYSTEM))
    orders = [order(f"A-{unique}", registered), order(f"B-{unique}", registered), order(f"C-{unique}", right)]
    writer, uid = make_writer(ehr.base_url), new_uid()
    writer.feed(completed(uid, mrn=mrn, accession=f"A-{unique}"), generated(uid))
    writer.run_due()
    writer.feed(completed(uid, 2, mrn=mrn, accession=f"B-{unique}"), generated(uid, 2))
    writer.run_due()
    (report,) = ehr.reports(uid)
    assert report["basedOn"][0]["reference"].endswith(f"ServiceRequest/{orders[1]['id']}")
    encounter = ehr.create({"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"}})
    ehr.put(report | {"encounter": {"reference": f"Encounter/{encounter['id']}"}})
    writer.feed(completed(uid, 3, mrn=f"{mrn}-2", accession=f"C-{unique}"), generated(uid, 3))
    writer.run_due()
    (report,) = ehr.reports(uid)
    assert report["subject"]["reference"].endswith(f"Patient/{right['id']}")
    assert [based_on["reference"].split("/")[-1] for based_on in report["basedOn"]] == [orders[2]["id"]]
    assert "encounter" not in report  # it was the other patient's


def test_an_image_outside_the_domain_is_held_until_a_person_releases_it(ehr, make_writer, mrn, registered):
    writer, uid = make_writer(ehr.base_url, park_out_of_domain=True), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid, flags=("out_of_domain",)))
    writer.run_due()
    assert writer.events()[0]["reason"]["code"] == "out_of_domain"
    assert ehr.reports(uid) == []
    writer.deliveries.replay(writer.clock.now(), uid)
    writer.run_due()
    assert [event["result"] for event in writer.events()] == ["created"]
