package main

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// environment tells where values come from; values of Secrets are not read.
func (s *sheet) environment(c *balsav1.Container) {
	var from []string
	for _, source := range c.GetEnvFrom() {
		kind, ref := "ConfigMap", source.GetConfigMapRef()
		if source.GetSecretRef() != nil {
			kind, ref = "Secret", source.GetSecretRef()
		}
		text := fmt.Sprintf("%s %s%s", kind, ref.GetName(), optionalMark(ref.GetOptional()))
		if source.GetPrefix() != "" {
			text += " with prefix " + source.GetPrefix()
		}
		from = append(from, text)
	}
	if len(from) > 0 {
		s.list("Environment from", from)
	}
	if len(c.GetEnv()) == 0 {
		return
	}
	s.part("Environment", func() {
		for _, e := range c.GetEnv() {
			s.row(e.GetName(), envText(e))
		}
	})
}

func envText(e *balsav1.EnvVar) string {
	source := e.GetValueFrom()
	switch {
	case source.GetConfigMapKeyRef() != nil:
		ref := source.GetConfigMapKeyRef()
		return fmt.Sprintf("<key %s of ConfigMap %s%s>", ref.GetKey(), ref.GetName(), optionalMark(ref.GetOptional()))
	case source.GetSecretKeyRef() != nil:
		ref := source.GetSecretKeyRef()
		return fmt.Sprintf("<key %s of Secret %s%s>", ref.GetKey(), ref.GetName(), optionalMark(ref.GetOptional()))
	case source.GetFieldRef() != nil:
		return "<" + source.GetFieldRef().GetFieldPath() + ">"
	case source.GetResourceFieldRef() != nil:
		return "<" + source.GetResourceFieldRef().GetResource() + ">"
	}
	return oneLine(e.GetValue())
}

func optionalMark(optional bool) string {
	if optional {
		return ", optional"
	}
	return ""
}

func (s *sheet) volumes(volumes []*balsav1.Volume) {
	if len(volumes) == 0 {
		s.row("Volumes", "")
		return
	}
	s.part("Volumes", func() {
		for _, v := range volumes {
			s.row(v.GetName(), volumeText(v))
		}
	})
}

func volumeText(v *balsav1.Volume) string {
	switch {
	case v.GetEmptyDir() != nil:
		text := "emptyDir, as long as the pod"
		if v.GetEmptyDir().GetMedium() != "" {
			text += ", in " + strings.ToLower(v.GetEmptyDir().GetMedium())
		}
		if limit := v.GetEmptyDir().GetSizeLimit().GetString_(); limit != "" {
			text += ", at most " + limit
		}
		return text
	case v.GetHostPath() != nil:
		return strings.TrimSpace(fmt.Sprintf("hostPath %s %s", v.GetHostPath().GetPath(), v.GetHostPath().GetType()))
	case v.GetConfigMap() != nil:
		return "ConfigMap " + v.GetConfigMap().GetName() + optionalMark(v.GetConfigMap().GetOptional())
	case v.GetSecret() != nil:
		return "Secret " + v.GetSecret().GetSecretName() + optionalMark(v.GetSecret().GetOptional())
	case v.GetDownwardApi() != nil:
		return fmt.Sprintf("downwardAPI, %d files", len(v.GetDownwardApi().GetItems()))
	case v.GetPersistentVolumeClaim() != nil:
		text := "PersistentVolumeClaim " + v.GetPersistentVolumeClaim().GetClaimName()
		if v.GetPersistentVolumeClaim().GetReadOnly() {
			text += ", read-only"
		}
		return text
	}
	return "projected: " + strings.Join(projections(v.GetProjected()), "; ")
}

func projections(p *balsav1.ProjectedVolumeSource) []string {
	var texts []string
	for _, source := range p.GetSources() {
		switch {
		case source.GetConfigMap() != nil:
			texts = append(texts, "ConfigMap "+source.GetConfigMap().GetName()+optionalMark(source.GetConfigMap().GetOptional()))
		case source.GetSecret() != nil:
			texts = append(texts, "Secret "+source.GetSecret().GetName()+optionalMark(source.GetSecret().GetOptional()))
		default:
			texts = append(texts, fmt.Sprintf("downwardAPI, %d files", len(source.GetDownwardApi().GetItems())))
		}
	}
	return texts
}

func (s *sheet) claim(c *balsav1.PersistentVolumeClaim, pods []*balsav1.Pod) {
	s.identity(c.GetMetadata())
	s.row("Storage class", c.GetSpec().GetStorageClassName())
	s.row("Status", claimStatus(c))
	s.row("Volume", c.GetSpec().GetVolumeName())
	s.marks(c.GetMetadata())
	s.row("Requested", c.GetSpec().GetResources().GetRequests()["storage"].GetString_())
	s.row("Capacity", c.GetStatus().GetCapacity()["storage"].GetString_())
	s.row("Access modes", accessModes(c.GetSpec().GetAccessModes()))
	s.row("Volume mode", c.GetSpec().GetVolumeMode())
	s.conditions(c.GetStatus().GetConditions())
	var names []string
	for _, pod := range pods {
		names = append(names, pod.GetMetadata().GetName())
	}
	s.list("Used by", names)
}

func (s *sheet) volume(v *balsav1.PersistentVolume) {
	spec := v.GetSpec()
	s.identity(v.GetMetadata())
	s.marks(v.GetMetadata())
	s.row("Storage class", spec.GetStorageClassName())
	s.row("Status", volumeStatus(v))
	s.some("Reason", v.GetStatus().GetReason())
	s.some("Message", v.GetStatus().GetMessage())
	s.row("Claim", claimText(spec.GetClaimRef()))
	s.row("Reclaim policy", spec.GetPersistentVolumeReclaimPolicy())
	s.row("Access modes", accessModes(spec.GetAccessModes()))
	s.row("Volume mode", spec.GetVolumeMode())
	s.row("Capacity", spec.GetCapacity()["storage"].GetString_())
	var terms []string
	for _, term := range spec.GetNodeAffinity().GetRequired().GetNodeSelectorTerms() {
		for _, e := range term.GetMatchExpressions() {
			terms = append(terms, fmt.Sprintf("%s %s [%s]", e.GetKey(), strings.ToLower(e.GetOperator()), strings.Join(e.GetValues(), " ")))
		}
	}
	s.list("Node affinity", terms)
	s.part("Source", func() {
		s.row("Local path", spec.GetLocal().GetPath())
		s.some("File system", spec.GetLocal().GetFsType())
	})
}
