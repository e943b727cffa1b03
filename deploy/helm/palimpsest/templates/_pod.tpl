{{/* What every pod and every container of ours has. */}}
{{- define "palimpsest.podSpec" -}}
serviceAccountName: {{ include "palimpsest.serviceAccount" . }}
automountServiceAccountToken: false
# Kubernetes would set PALIMPSEST_..._SERVICE_HOST and the like, which look like settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end -}}

{{- define "palimpsest.container" -}}
image: {{ include "palimpsest.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.containerSecurityContext | nindent 2 }}
# The last line says what is wrong, and `kubectl describe pod` shows it.
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* Argument: a dict of `root`, `container` and what the container is configured by (`role`). */}}
{{- define "palimpsest.env" -}}
env:
  # As many threads as CPUs: PyTorch would count those of the node.
  - name: OMP_NUM_THREADS
    valueFrom: {resourceFieldRef: {containerName: {{ .container }}, resource: limits.cpu, divisor: "1"}}
  {{- with .role.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with include "palimpsest.mlflowSecret" .root }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}

{{- define "palimpsest.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int (dig "gpu" "count" 0 .)) 0 -}}
{{- $limits := mergeOverwrite (default dict $resources.limits) (dict .gpu.resource (int .gpu.count)) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
resources: {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{- define "palimpsest.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: settings, mountPath: /etc/palimpsest, readOnly: true}
{{- if include "palimpsest.kafkaSecret" . }}
- {name: kafka, mountPath: /run/secrets/kafka, readOnly: true}
{{- end }}
{{- if .Values.kafka.tls.existingSecret }}
- {name: kafka-tls, mountPath: /run/secrets/kafka-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "palimpsest.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmp.sizeLimit }}}
- name: settings
  configMap: {name: {{ include "palimpsest.fullname" . }}-settings}
{{- with include "palimpsest.kafkaSecret" . }}
- name: kafka
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.kafka.tls.existingSecret }}
- name: kafka-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{/* A change of the settings starts the pods anew. One of a secret does not: its sum would be there to be guessed at. */}}
{{- define "palimpsest.checksums" -}}
checksum/settings: {{ include "palimpsest.settings" . | sha256sum }}
{{- end -}}

{{- define "palimpsest.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
