package object

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// KnownField tells whether Kubernetes 1.36 has a field, by JSON name, in its
// counterpart of one of our messages, and this version does not implement it.
// Give it to package codec, which then says "not supported yet" instead of
// "unknown field".
func KnownField(message protoreflect.FullName, jsonName string) bool {
	return slices.Contains(strings.Fields(unsupportedFields(message)), jsonName)
}

// KnownKind tells whether Kubernetes has a kind that this version does not
// implement.
func KnownKind(kind string) bool {
	return slices.Contains(strings.Fields(unsupportedKinds), kind)
}

const unsupportedKinds = `StatefulSet DaemonSet Job CronJob Ingress IngressClass
	ServiceAccount Role RoleBinding ClusterRole ClusterRoleBinding HorizontalPodAutoscaler
	ReplicationController Endpoints LimitRange ResourceQuota PriorityClass RuntimeClass Lease CustomResourceDefinition
	PodTemplate ControllerRevision CSIDriver CSINode CSIStorageCapacity VolumeAttachment VolumeAttributesClass
	MutatingWebhookConfiguration ValidatingWebhookConfiguration MutatingAdmissionPolicy MutatingAdmissionPolicyBinding
	ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding APIService CertificateSigningRequest ClusterTrustBundle
	FlowSchema PriorityLevelConfiguration ResourceClaim ResourceClaimTemplate ResourceSlice DeviceClass IPAddress
	ServiceCIDR VolumeSnapshot VolumeSnapshotClass VolumeSnapshotContent Gateway GatewayClass HTTPRoute`

func unsupportedFields(message protoreflect.FullName) string {
	name := strings.TrimPrefix(string(message), "balsa.v1.")
	for _, table := range []func(string) string{unsupportedInPods, unsupportedInVolumes, unsupportedInStatus, unsupportedElsewhere} {
		if fields := table(name); fields != "" {
			return fields
		}
	}
	return ""
}

func unsupportedInPods(message string) string {
	switch message {
	case "PodSpec":
		return `serviceAccountName serviceAccount hostnameOverride affinity schedulerName priorityClassName
			preemptionPolicy readinessGates runtimeClassName overhead os schedulingGates resourceClaims resources
			schedulingGroup`
	case "Container":
		return "volumeDevices resizePolicy restartPolicyRules"
	case "EphemeralContainer":
		return `ports resources resizePolicy restartPolicy restartPolicyRules volumeDevices livenessProbe readinessProbe
			startupProbe lifecycle`
	case "EnvVarSource":
		return "fileKeyRef"
	case "LifecycleHandler":
		return "tcpSocket"
	case "ResourceRequirements":
		return "claims"
	case "TopologySpreadConstraint":
		return "minDomains nodeAffinityPolicy nodeTaintsPolicy matchLabelKeys"
	case "PodSecurityContext":
		return "seLinuxOptions windowsOptions appArmorProfile seLinuxChangePolicy"
	case "SecurityContext":
		return "seLinuxOptions windowsOptions appArmorProfile"
	}
	return ""
}

func unsupportedInVolumes(message string) string {
	switch message {
	case "Volume":
		return `gcePersistentDisk awsElasticBlockStore gitRepo nfs iscsi glusterfs rbd flexVolume cinder cephfs flocker fc
			azureFile vsphereVolume quobyte azureDisk photonPersistentDisk portworxVolume scaleIO storageos csi ephemeral image`
	case "VolumeMount":
		return "recursiveReadOnly"
	case "VolumeProjection":
		return "serviceAccountToken clusterTrustBundle podCertificate"
	case "PersistentVolumeClaimSpec":
		return "selector dataSource dataSourceRef volumeAttributesClassName"
	case "PersistentVolumeClaimStatus":
		return "allocatedResources allocatedResourceStatuses currentVolumeAttributesClassName modifyVolumeStatus"
	case "PersistentVolumeSpec":
		return `gcePersistentDisk awsElasticBlockStore hostPath glusterfs nfs rbd iscsi cinder cephfs fc flocker flexVolume
			azureFile vsphereVolume quobyte azureDisk photonPersistentDisk portworxVolume scaleIO storageos csi mountOptions
			volumeAttributesClassName`
	case "PersistentVolumeStatus":
		return "lastPhaseTransitionTime"
	case "ClaimReference":
		return "kind apiVersion resourceVersion fieldPath"
	case "NodeSelectorTerm":
		return "matchFields"
	case "StorageClass":
		return "mountOptions allowVolumeExpansion allowedTopologies"
	}
	return ""
}

func unsupportedInStatus(message string) string {
	switch message {
	case "PodStatus":
		return `nominatedNodeName resize resourceClaimStatuses extendedResourceClaimStatus allocatedResources resources
			nodeAllocatableResourceClaimStatuses`
	case "ContainerStatus":
		return "allocatedResources allocatedResourcesStatus resources volumeMounts user stopSignal"
	case "Condition":
		return "lastUpdateTime lastProbeTime lastHeartbeatTime"
	case "DeploymentStatus", "ReplicaSetStatus":
		return "terminatingReplicas"
	case "NodeStatus":
		return "phase volumesInUse volumesAttached config runtimeHandlers features declaredFeatures"
	case "NodeSystemInfo":
		return "systemUUID kubeProxyVersion swap"
	case "LoadBalancerIngress":
		return "ports"
	}
	return ""
}

func unsupportedElsewhere(message string) string {
	switch message {
	case "ObjectMeta":
		return "finalizers selfLink"
	case "ManagedFields":
		return "operation apiVersion fieldsType fieldsV1 subresource"
	case "ListMeta":
		return "selfLink"
	case "Namespace":
		return "spec"
	case "NodeSpec":
		return "podCIDRs providerID configSource externalID"
	case "ServiceSpec":
		return "healthCheckNodePort trafficDistribution"
	case "Endpoint":
		return "zone hints deprecatedTopology"
	case "EndpointPort":
		return "appProtocol"
	case "Event":
		return "eventTime series action related reportingComponent reportingInstance"
	}
	return ""
}
