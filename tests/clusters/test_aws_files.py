"""clusters/aws*.yaml: by Ray's schema, by CloudFormation's, and in a simulated AWS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.fields import CLUSTERS

ACCOUNT = CLUSTERS / "aws-account.yaml"
MY_ADDRESS = "203.0.113.7/32"
IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
"""One that the simulation knows, instead of that with NVIDIA's driver."""
DRIVER_IMAGE = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
)


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config

    text = (CLUSTERS / "aws.yaml").read_text().replace("REGISTRY", "registry.example.org")
    return prepare_config(yaml.safe_load(text))


@pytest.fixture(scope="module")
def aws(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The stack of aws-account.yaml, made in the simulation."""
    from boto3.session import Session

    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": s3_server,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "HOME": str(home),
        }.items():
            patch.setenv(name, value)
        stacks = Session().client("cloudformation")
        template = ACCOUNT.read_text()
        assert DRIVER_IMAGE in template
        parameters = {"MyAddress": MY_ADDRESS, "Bucket": "muva-artifacts"}
        stacks.create_stack(
            StackName="muva",
            TemplateBody=template.replace(DRIVER_IMAGE, IMAGE),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value}
                for name, value in parameters.items()
            ],
        )
        (stack,) = stacks.describe_stacks(StackName="muva")["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        yield


def test_the_file_is_of_rays_schema(prepared: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config({**prepared, "max_worker": 3})


def test_workers_start_from_zero_and_gpus_are_spot(prepared: dict[str, Any]) -> None:
    types = dict(prepared["available_node_types"])
    head = types.pop(prepared["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert all(each["min_workers"] == 0 < each["max_workers"] for each in types.values())
    gpus = [each for each in types.values() if each["resources"].get("GPU")]
    assert gpus
    for each in gpus:
        assert each["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert each["docker"]["worker_image"].endswith(":cuda")


def test_ray_starts_with_the_token_on_every_machine(prepared: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        commands = prepared[f"{role}_start_ray_commands"]
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in " ".join(prepared["head_start_ray_commands"])
    assert list(prepared["file_mounts"]) == ["/home/muva/.ray/auth_token"]


def test_the_template_is_of_cloudformations_schema() -> None:
    from cfnlint.api import lint_file

    assert [str(match) for match in lint_file(ACCOUNT)] == []


def test_ray_takes_the_stacks_group_roles_and_image_and_makes_none(
    aws: None, prepared: dict[str, Any]
) -> None:
    from boto3.session import Session
    from ray.autoscaler._private.aws.config import bootstrap_aws

    ec2 = Session().client("ec2")
    before = {group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    ready = bootstrap_aws(prepared)
    after = ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupId"] for group in after} == before
    (image,) = Session().client("ssm").get_parameters(Names=[IMAGE])["Parameters"]
    profiles = {}
    for name, node_type in ready["available_node_types"].items():
        config = node_type["node_config"]
        (group,) = [each for each in after if each["GroupId"] in config["SecurityGroupIds"]]
        from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
        assert [
            (rule["FromPort"], rule["ToPort"], rule["IpRanges"][0]["CidrIp"])
            for rule in from_outside
        ] == [(22, 22, MY_ADDRESS)]
        among = [rule for rule in group["IpPermissions"] if not rule["IpRanges"]]
        assert [pair["GroupId"] for rule in among for pair in rule["UserIdGroupPairs"]] == [
            group["GroupId"]
        ]
        assert config["ImageId"] == image["Value"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        profiles[name] = config["IamInstanceProfile"]["Arn"]
    assert profiles["processors"] == profiles["spot-gpus"] != profiles["head"]
    assert Path(ready["auth"]["ssh_private_key"]).is_relative_to(Path(os.environ["HOME"]))


def test_machines_may_use_the_bucket_and_only_the_head_starts_others(aws: None) -> None:
    from boto3.session import Session

    iam = Session().client("iam")
    may_start = {}
    for role in iam.list_roles()["Roles"]:
        name = role["RoleName"]
        attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
        documents = []
        for policy in attached:
            version = iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
            read = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)
            documents.append(str(read["PolicyVersion"]["Document"]))
        assert any("muva-artifacts/*" in document for document in documents)
        own = iam.list_role_policies(RoleName=name)["PolicyNames"]
        may_start[name] = any(
            "ec2:RunInstances"
            in str(iam.get_role_policy(RoleName=name, PolicyName=each)["PolicyDocument"])
            for each in own
        )
    assert sorted(may_start.values()) == [False, True]
