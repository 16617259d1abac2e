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

const unsupportedKinds = `StatefulSet DaemonSet Job CronJob Ingress IngressClass NetworkPolicy PersistentVolume
	PersistentVolumeClaim StorageClass ServiceAccount Role RoleBinding ClusterRole ClusterRoleBinding
	HorizontalPodAutoscaler PodDisruptionBudget ReplicationController Endpoints LimitRange ResourceQuota
	PriorityClass RuntimeClass Lease CustomResourceDefinition PodTemplate ControllerRevision CSIDriver CSINode
	VolumeAttachment MutatingWebhookConfiguration ValidatingWebhookConfiguration ValidatingAdmissionPolicy
	ValidatingAdmissionPolicyBinding APIService CertificateSigningRequest Gateway GatewayClass HTTPRoute`

func unsupportedFields(message protoreflect.FullName) string {
	switch strings.TrimPrefix(string(message), "balsa.v1.") {
	case "ObjectMeta":
		return "finalizers selfLink"
	case "ManagedFields":
		return "operation apiVersion fieldsType fieldsV1 subresource"
	case "ListMeta":
		return "selfLink"
	case "Condition":
		return "lastUpdateTime lastProbeTime lastHeartbeatTime"
	case "PodSpec":
		return `volumes initContainers ephemeralContainers activeDeadlineSeconds dnsPolicy dnsConfig serviceAccountName
			serviceAccount automountServiceAccountToken hostNetwork hostPID hostIPC hostUsers hostAliases
			hostnameOverride shareProcessNamespace securityContext imagePullSecrets subdomain affinity schedulerName
			tolerations priorityClassName priority preemptionPolicy readinessGates runtimeClassName enableServiceLinks
			overhead setHostnameAsFQDN os schedulingGates resourceClaims resources workloadRef schedulingGroup`
	case "Container":
		return `livenessProbe startupProbe lifecycle terminationMessagePath terminationMessagePolicy securityContext
			stdin stdinOnce tty volumeMounts volumeDevices resizePolicy restartPolicy restartPolicyRules`
	case "ContainerPort":
		return "hostPort hostIP"
	case "EnvVarSource":
		return "resourceFieldRef fileKeyRef"
	case "Probe":
		return "exec tcpSocket grpc terminationGracePeriodSeconds"
	case "HTTPGetAction":
		return "host"
	case "ResourceRequirements":
		return "claims"
	case "TopologySpreadConstraint":
		return "minDomains nodeAffinityPolicy nodeTaintsPolicy matchLabelKeys"
	case "PodStatus":
		return `nominatedNodeName hostIPs qosClass initContainerStatuses ephemeralContainerStatuses resize
			resourceClaimStatuses extendedResourceClaimStatus allocatedResources resources`
	case "ContainerStatus":
		return "allocatedResources allocatedResourcesStatus resources volumeMounts user stopSignal"
	}
	return unsupportedOutsidePods(message)
}

func unsupportedOutsidePods(message protoreflect.FullName) string {
	switch strings.TrimPrefix(string(message), "balsa.v1.") {
	case "DeploymentSpec":
		return "paused"
	case "DeploymentStatus", "ReplicaSetStatus":
		return "terminatingReplicas"
	case "Namespace":
		return "spec"
	case "NodeSpec":
		return "podCIDRs providerID taints configSource externalID"
	case "NodeStatus":
		return "phase images volumesInUse volumesAttached config runtimeHandlers features declaredFeatures"
	case "NodeSystemInfo":
		return "systemUUID kubeProxyVersion swap"
	case "ServiceSpec":
		return `clusterIPs externalIPs sessionAffinity sessionAffinityConfig loadBalancerIP loadBalancerSourceRanges
			loadBalancerClass allocateLoadBalancerNodePorts externalName externalTrafficPolicy internalTrafficPolicy
			healthCheckNodePort publishNotReadyAddresses ipFamilies ipFamilyPolicy trafficDistribution`
	case "ServicePort":
		return "appProtocol nodePort"
	case "ServiceStatus":
		return "loadBalancer"
	case "Endpoint":
		return "zone hints deprecatedTopology"
	case "EndpointPort":
		return "appProtocol"
	case "Event":
		return "eventTime series action related reportingComponent reportingInstance"
	}
	return ""
}
