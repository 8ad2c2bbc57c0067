<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Messages</%def>
<h1>Messages</h1>
<p>What failed. <a href="${base}/messages/done${f'?{shown.query(project=project)}' if project else ''}">What was done, and by whom</a></p>
% if everywhere:
${parts.of_project('messages', project)}
% endif
% if not messages:
<p>Nobody was told of anything that failed.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col">Of</th><th scope="col">Request</th><th scope="col"><span class="hidden">Actions</span></th></tr></thead>
<tbody>
% for one in messages:
<tr>
<td>${shown.since(one.created_at, now)}</td>
<th scope="row">${one.user_message}
% if everywhere:
<small>project ${one.project_id}</small>
% endif
</th>
<td>${one.resource_type.lower().replace('_', ' ')} <code title="${one.resource_uuid}">${one.resource_uuid[:8]}</code></td>
<td><small>${one.request_id or '-'}</small></td>
<td>
% if may_delete[one.project_id]:
<form method="post" action="${base}/messages/${one.id}/delete"><button class="small quiet" aria-label="Delete the message of ${one.resource_uuid[:8]}">Delete</button></form>
% endif
</td>
</tr>
% endfor
</tbody></table></div>
% if more:
<p><a href="${base}/messages?${shown.query(project=project, marker=messages[-1].id)}">More</a></p>
% endif
<p><small>Messages go by themselves after <code>[DEFAULT] message_ttl</code>.</small></p>
${parts.same('GET /v3/PROJECT/messages', None, 'openstack volume message list')}
% if any(may_delete.values()):
${parts.same('DELETE /v3/PROJECT/messages/ID', None, 'openstack volume message delete ID', 'Delete')}
% endif
% endif
