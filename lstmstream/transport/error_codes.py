"""The error codes of the Kafka 4.1 protocol: the name of each, and of what kind it is for the daemon.

One table for both clients: each gives the number of the broker's error, and adds only the errors that it raises by
itself (clients/). A number that is not in here is of a newer broker: it counts as transient, and is logged as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lstmstream.config.properties import Properties
from lstmstream.transport.decisions import ErrorKind, Problem

PROPERTY_DEFAULTS: Mapping[str, object] = {
    field.alias: field.default for field in Properties.model_fields.values() if field.alias is not None
}
_T = ErrorKind.TRANSIENT


class ErrorCode(NamedTuple):
    """One error of the protocol."""

    name: str
    kind: ErrorKind


class Setting(NamedTuple):
    """What the broker refuses for good, and what to do about it."""

    option: str  # of the daemon's configuration; of kafka.properties where it has a dot
    advice: str


CODES: Mapping[int, ErrorCode] = {
    number: ErrorCode(name, kind)
    for number, name, kind in (
        (-1, "UNKNOWN_SERVER_ERROR", _T),
        (0, "NONE", _T),
        (1, "OFFSET_OUT_OF_RANGE", ErrorKind.RECORDS_GONE),
        (2, "CORRUPT_MESSAGE", ErrorKind.RECORD_UNREADABLE),  # of a write, the clients send it again
        (3, "UNKNOWN_TOPIC_OR_PARTITION", _T),
        (4, "INVALID_FETCH_SIZE", _T),
        (5, "LEADER_NOT_AVAILABLE", _T),
        (6, "NOT_LEADER_OR_FOLLOWER", _T),
        (7, "REQUEST_TIMED_OUT", _T),
        (8, "BROKER_NOT_AVAILABLE", _T),
        (9, "REPLICA_NOT_AVAILABLE", _T),
        (10, "MESSAGE_TOO_LARGE", ErrorKind.RECORD_TOO_LARGE),
        (11, "STALE_CONTROLLER_EPOCH", _T),
        (12, "OFFSET_METADATA_TOO_LARGE", ErrorKind.SETTING_REFUSED),
        (13, "NETWORK_EXCEPTION", _T),
        (14, "COORDINATOR_LOAD_IN_PROGRESS", _T),
        (15, "COORDINATOR_NOT_AVAILABLE", _T),
        (16, "NOT_COORDINATOR", _T),
        (17, "INVALID_TOPIC_EXCEPTION", ErrorKind.TOPIC_REFUSED),
        (18, "RECORD_LIST_TOO_LARGE", ErrorKind.RECORD_TOO_LARGE),
        (19, "NOT_ENOUGH_REPLICAS", _T),
        (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND", _T),
        (21, "INVALID_REQUIRED_ACKS", ErrorKind.SETTING_REFUSED),
        (22, "ILLEGAL_GENERATION", ErrorKind.MEMBERSHIP_REFUSED),
        (23, "INCONSISTENT_GROUP_PROTOCOL", ErrorKind.SETTING_REFUSED),
        (24, "INVALID_GROUP_ID", ErrorKind.SETTING_REFUSED),
        (25, "UNKNOWN_MEMBER_ID", ErrorKind.MEMBERSHIP_REFUSED),
        (26, "INVALID_SESSION_TIMEOUT", ErrorKind.SETTING_REFUSED),
        (27, "REBALANCE_IN_PROGRESS", _T),
        (28, "INVALID_COMMIT_OFFSET_SIZE", ErrorKind.SETTING_REFUSED),
        (29, "TOPIC_AUTHORIZATION_FAILED", ErrorKind.DENIED),
        (30, "GROUP_AUTHORIZATION_FAILED", ErrorKind.DENIED),
        (31, "CLUSTER_AUTHORIZATION_FAILED", ErrorKind.DENIED),
        (32, "INVALID_TIMESTAMP", ErrorKind.RECORD_REFUSED),
        (33, "UNSUPPORTED_SASL_MECHANISM", ErrorKind.BAD_CREDENTIALS),
        (34, "ILLEGAL_SASL_STATE", ErrorKind.BAD_CREDENTIALS),
        (35, "UNSUPPORTED_VERSION", ErrorKind.SETTING_REFUSED),
        (36, "TOPIC_ALREADY_EXISTS", _T),
        (37, "INVALID_PARTITIONS", ErrorKind.TOPIC_REFUSED),
        (38, "INVALID_REPLICATION_FACTOR", ErrorKind.TOPIC_REFUSED),
        (39, "INVALID_REPLICA_ASSIGNMENT", ErrorKind.TOPIC_REFUSED),
        (40, "INVALID_CONFIG", ErrorKind.TOPIC_REFUSED),
        (41, "NOT_CONTROLLER", _T),
        (42, "INVALID_REQUEST", _T),
        (43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", ErrorKind.RECORD_REFUSED),
        (44, "POLICY_VIOLATION", ErrorKind.TOPIC_REFUSED),
        (45, "OUT_OF_ORDER_SEQUENCE_NUMBER", _T),
        (46, "DUPLICATE_SEQUENCE_NUMBER", _T),
        (47, "INVALID_PRODUCER_EPOCH", ErrorKind.PRODUCER_FENCED),
        (48, "INVALID_TXN_STATE", _T),
        (49, "INVALID_PRODUCER_ID_MAPPING", _T),
        (50, "INVALID_TRANSACTION_TIMEOUT", ErrorKind.SETTING_REFUSED),
        (51, "CONCURRENT_TRANSACTIONS", _T),
        (52, "TRANSACTION_COORDINATOR_FENCED", _T),
        (53, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", ErrorKind.DENIED),
        (54, "SECURITY_DISABLED", ErrorKind.SETTING_REFUSED),
        (55, "OPERATION_NOT_ATTEMPTED", _T),
        (56, "KAFKA_STORAGE_ERROR", _T),
        (57, "LOG_DIR_NOT_FOUND", _T),
        (58, "SASL_AUTHENTICATION_FAILED", ErrorKind.BAD_CREDENTIALS),
        (59, "UNKNOWN_PRODUCER_ID", _T),
        (60, "REASSIGNMENT_IN_PROGRESS", _T),
        (61, "DELEGATION_TOKEN_AUTH_DISABLED", ErrorKind.BAD_CREDENTIALS),
        (62, "DELEGATION_TOKEN_NOT_FOUND", ErrorKind.BAD_CREDENTIALS),
        (63, "DELEGATION_TOKEN_OWNER_MISMATCH", ErrorKind.BAD_CREDENTIALS),
        (64, "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", ErrorKind.BAD_CREDENTIALS),
        (65, "DELEGATION_TOKEN_AUTHORIZATION_FAILED", ErrorKind.DENIED),
        (66, "DELEGATION_TOKEN_EXPIRED", ErrorKind.BAD_CREDENTIALS),
        (67, "INVALID_PRINCIPAL_TYPE", ErrorKind.BAD_CREDENTIALS),
        (68, "NON_EMPTY_GROUP", _T),
        (69, "GROUP_ID_NOT_FOUND", _T),
        (70, "FETCH_SESSION_ID_NOT_FOUND", _T),
        (71, "INVALID_FETCH_SESSION_EPOCH", _T),
        (72, "LISTENER_NOT_FOUND", _T),
        (73, "TOPIC_DELETION_DISABLED", _T),
        (74, "FENCED_LEADER_EPOCH", _T),
        (75, "UNKNOWN_LEADER_EPOCH", _T),
        (76, "UNSUPPORTED_COMPRESSION_TYPE", ErrorKind.SETTING_REFUSED),
        (77, "STALE_BROKER_EPOCH", _T),
        (78, "OFFSET_NOT_AVAILABLE", _T),
        (79, "MEMBER_ID_REQUIRED", _T),
        (80, "PREFERRED_LEADER_NOT_AVAILABLE", _T),
        (81, "GROUP_MAX_SIZE_REACHED", _T),
        (82, "FENCED_INSTANCE_ID", ErrorKind.INSTANCE_FENCED),
        (83, "ELIGIBLE_LEADERS_NOT_AVAILABLE", _T),
        (84, "ELECTION_NOT_NEEDED", _T),
        (85, "NO_REASSIGNMENT_IN_PROGRESS", _T),
        (86, "GROUP_SUBSCRIBED_TO_TOPIC", _T),
        (87, "INVALID_RECORD", ErrorKind.RECORD_REFUSED),
        (88, "UNSTABLE_OFFSET_COMMIT", _T),
        (89, "THROTTLING_QUOTA_EXCEEDED", _T),
        (90, "PRODUCER_FENCED", ErrorKind.PRODUCER_FENCED),
        (91, "RESOURCE_NOT_FOUND", _T),
        (92, "DUPLICATE_RESOURCE", _T),
        (93, "UNACCEPTABLE_CREDENTIAL", ErrorKind.BAD_CREDENTIALS),
        (94, "INCONSISTENT_VOTER_SET", _T),
        (95, "INVALID_UPDATE_VERSION", _T),
        (96, "FEATURE_UPDATE_FAILED", _T),
        (97, "PRINCIPAL_DESERIALIZATION_FAILURE", _T),
        (98, "SNAPSHOT_NOT_FOUND", _T),
        (99, "POSITION_OUT_OF_RANGE", _T),
        (100, "UNKNOWN_TOPIC_ID", _T),
        (101, "DUPLICATE_BROKER_REGISTRATION", _T),
        (102, "BROKER_ID_NOT_REGISTERED", _T),
        (103, "INCONSISTENT_TOPIC_ID", _T),
        (104, "INCONSISTENT_CLUSTER_ID", _T),
        (105, "TRANSACTIONAL_ID_NOT_FOUND", _T),
        (106, "FETCH_SESSION_TOPIC_ID_ERROR", _T),
        (107, "INELIGIBLE_REPLICA", _T),
        (108, "NEW_LEADER_ELECTED", _T),
        (109, "OFFSET_MOVED_TO_TIERED_STORAGE", _T),
        (110, "FENCED_MEMBER_EPOCH", _T),
        (111, "UNRELEASED_INSTANCE_ID", _T),
        (112, "UNSUPPORTED_ASSIGNOR", ErrorKind.SETTING_REFUSED),
        (113, "STALE_MEMBER_EPOCH", _T),
        (114, "MISMATCHED_ENDPOINT_TYPE", _T),
        (115, "UNSUPPORTED_ENDPOINT_TYPE", _T),
        (116, "UNKNOWN_CONTROLLER_ID", _T),
        (117, "UNKNOWN_SUBSCRIPTION_ID", _T),
        (118, "TELEMETRY_TOO_LARGE", _T),
        (119, "INVALID_REGISTRATION", _T),
        (120, "TRANSACTION_ABORTABLE", _T),
        (121, "INVALID_RECORD_STATE", _T),
        (122, "SHARE_SESSION_NOT_FOUND", _T),
        (123, "INVALID_SHARE_SESSION_EPOCH", _T),
        (124, "FENCED_STATE_EPOCH", _T),
        (125, "INVALID_VOTER_KEY", _T),
        (126, "DUPLICATE_VOTER", _T),
        (127, "VOTER_NOT_FOUND", _T),
        (128, "INVALID_REGULAR_EXPRESSION", _T),
        (129, "REBOOTSTRAP_REQUIRED", _T),
        (130, "STREAMS_INVALID_TOPOLOGY", _T),
        (131, "STREAMS_INVALID_TOPOLOGY_EPOCH", _T),
        (132, "STREAMS_TOPOLOGY_FENCED", _T),
        (133, "SHARE_SESSION_LIMIT_REACHED", _T),
    )
}

# Of the codes that are SETTING_REFUSED: which option, and what bounds it.
SETTINGS: Mapping[int, Setting] = {
    12: Setting("name", "the broker's offset.metadata.max.bytes is too small: 4096 is its default"),
    21: Setting("kafka", "the broker does not accept acks=all, which the daemon needs"),
    23: Setting(
        "name",
        "the group has members of another kind, or with another partition.assignment.strategy: stop them, or choose"
        " another name",
    ),
    24: Setting("name", "it is the consumer group; choose one that the broker accepts"),
    26: Setting(
        "session.timeout.ms",
        "it must lie between the broker's group.min.session.timeout.ms (6000 by default) and"
        " group.max.session.timeout.ms (1800000 by default)",
    ),
    28: Setting("name", "the broker's offset.metadata.max.bytes or its limit on a record of offsets is too small"),
    35: Setting("kafka", "the broker is too old for what the daemon needs: Kafka 2.5 or newer"),
    50: Setting(
        "transaction.timeout.ms", "it may be at most the broker's transaction.max.timeout.ms (900000 by default)"
    ),
    54: Setting("kafka.security", "the broker has no authorizer or no security for this request"),
    76: Setting("compression.type", "the topic or the broker does not accept it; choose another one, or none"),
    112: Setting("name", "the group uses the consumer protocol with another assignor; choose another name"),
}

# Plain words about errors that last until somebody does something.
HINTS: Mapping[int, str] = {
    14: "the broker is still loading the group's or the transaction's log",
    15: (
        "the coordinator is not available yet; if that lasts, the cluster may have fewer brokers than"
        " offsets.topic.replication.factor or transaction.state.log.replication.factor"
    ),
    19: "fewer replicas are in sync than the topic's min.insync.replicas",
    20: "fewer replicas are in sync than the topic's min.insync.replicas",
    29: "the daemon needs READ on the input topic, READ and WRITE on the state topic, and WRITE on all others",
    30: "the daemon needs READ on the consumer group {group!r}, which has the daemon's name",
    31: "the daemon creates topics that are missing; with create_topics: false it does not",
    53: "the daemon needs WRITE on transactional ids that begin with its name, {group!r}",
    56: "the broker has a problem with its disk; see the broker's log",
    81: "the group already has as many members as the broker's group.max.size",
    89: "a quota of the broker is used up",
}


def broker_problem(code: int, text: str, properties: Mapping[str, int | str], group: str) -> Problem:
    """What an error of the broker means. `properties` as configured, under Kafka's dotted names."""
    known = CODES.get(code)
    kind = ErrorKind.TRANSIENT if known is None else known.kind
    if kind is ErrorKind.SETTING_REFUSED:
        return Problem(kind, refused_setting(code, text, properties, group))
    return Problem(kind, describe(code, text, group))


def describe(code: int, text: str, group: str) -> str:
    """A text with the name and the number of the error, and what is known about it."""
    known = CODES.get(code)
    name = "unknown error" if known is None else known.name
    hint = HINTS.get(code)
    full = text if name in text else f"{text} ({name}, error {code})".strip()
    return full if hint is None else f"{full}: {hint.format(group=group)}"


def refused_setting(code: int, text: str, properties: Mapping[str, int | str], group: str) -> str:
    """Which option the broker refuses, its value, and what bounds it. `properties` as configured: dotted names."""
    option, advice = SETTINGS[code]
    if option == "name":
        return f"name: the broker refuses {group!r} as consumer group ({text}); {advice}"
    if option in PROPERTY_DEFAULTS:
        value = properties.get(option)
        shown = f"{PROPERTY_DEFAULTS[option]} (the default)" if value is None else str(value)
        return f"kafka.properties: the broker refuses {option} = {shown} ({text}); {advice}"
    return f"{option}: the broker refuses the request ({text}); {advice}"
